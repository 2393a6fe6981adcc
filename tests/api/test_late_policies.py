"""What an item does that cannot begin in time: set by itself, shown, exported, taken in again, and heard."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from broadcast_server.control import exchange, outlook
from broadcast_server.domain.clock import Window
from tests.api.test_schedules_api import API, an_office, told, wanted
from tests.support.village import DONG, LAN, at

MIN = timedelta(minutes=1)
BUSY_UNTIL = 17, 10

CASES: list[tuple[dict[str, Any], dict[str, Any], datetime | None, timedelta]] = [
    # asked, as it is stored, when it begins behind ten minutes of something else, from which second of its own sound
    ({"policy": "start_now"}, {}, at(*BUSY_UNTIL), 0 * MIN),
    ({"policy": "wait_at_most", "at_most_s": 300}, {"policy": "wait_at_most", "at_most_ms": 300_000}, None, 0 * MIN),
    (
        {"policy": "wait_at_most", "at_most_s": 900},
        {"policy": "wait_at_most", "at_most_ms": 900_000},
        at(*BUSY_UNTIL),
        0 * MIN,
    ),
    ({"policy": "next"}, {"policy": "next"}, at(*BUSY_UNTIL), 0 * MIN),
    (
        {"policy": "skip_if_later_than", "at_most_s": 60},
        {"policy": "skip_if_later_than", "at_most_ms": 60_000},
        None,
        0 * MIN,
    ),
    (
        {"policy": "skip_if_later_than", "at_most_s": 600},
        {"policy": "skip_if_later_than", "at_most_ms": 600_000},
        at(*BUSY_UNTIL),
        0 * MIN,
    ),
    ({"policy": "join_midway"}, {"policy": "join_midway"}, at(*BUSY_UNTIL), 8 * MIN),
]


@pytest.mark.parametrize(("asked", "stored", "begins", "offset"), CASES, ids=lambda case: str(case)[:48])
async def test_each_policy_is_set_shown_exported_and_heard(
    asked: dict[str, Any], stored: dict[str, Any], begins: datetime | None, offset: timedelta
) -> None:
    async with an_office() as (village, client):
        first = await village.bulletin("Dài", minutes=10)
        late = await village.bulletin("Trễ", minutes=20)
        body = wanted(first, starts_at=at(17).isoformat())
        assert (await client.post(f"{API}/schedules", json=body)).status_code == 201
        body = wanted(late, starts_at=at(17, 2).isoformat(), late=asked, max_wait_s=3600, accept_conflicts=True)
        made = (await client.post(f"{API}/schedules", json=body)).json()
        assert (await client.get(f"{API}/schedules/{made['id']}")).json()["late"] == stored

        document = await exchange.export_document(village.desk, LAN, DONG)
        exported = [one["late"] for one in document["schedules"] if "late" in one]
        assert [one["policy"] for one in exported] == ([asked["policy"]] if stored else [])
        assert all(("at_most" in one) is ("at_most_s" in asked) for one in exported)

        window = Window(at(17), at(19))
        hearing = await outlook.preview_cluster(village.desk, LAN, f"c1-{DONG}", window)
        heard = next((one for one in hearing.segments if one.title == "Trễ"), None)
        assert (None if heard is None else heard.start) == begins
        if heard is not None:
            assert heard.offset_ms == offset // timedelta(milliseconds=1)


async def test_a_policy_is_changed_by_itself_and_a_wrong_one_names_the_field() -> None:
    async with an_office() as (village, client):
        bulletin = await village.bulletin("Tin")
        made = (await client.post(f"{API}/schedules", json=wanted(bulletin, starts_at=at(17).isoformat()))).json()
        change = {"scope": "all", "late": {"policy": "next"}}
        changed = await client.post(f"{API}/schedules/{made['id']}/change", json=change)
        assert changed.json()["late"] == {"policy": "next"}
        for wrong in ({"policy": "next", "at_most_s": 5}, {"policy": "wait_at_most"}, {"policy": "skip_if_later_than"}):
            body = wanted(bulletin, starts_at=at(18).isoformat(), late=wrong)
            problem = told(await client.post(f"{API}/schedules", json=body), 422, "late_at_most")
            assert (problem["field"], bool(problem["fix"])) == ("late.at_most_s", True)
        body = wanted(bulletin, starts_at=at(18).isoformat(), late={"policy": "whenever"})
        assert (await client.post(f"{API}/schedules", json=body)).status_code == 422
