"""A negative acknowledgement: who placed what loses is told who won, until when, and what to change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from broadcast_server.api.conflicts import ScheduleConflict
from broadcast_server.catalogue import Locale
from broadcast_server.control import feeds, places, scheduling, sending
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.scheduling import NewSchedule
from broadcast_server.store.tables import ConflictRow
from broadcast_server.store.words import ConflictKind, ContentKind
from speaker_protocol.rules import BulletinClass
from tests.api.test_schedules_api import API, give_token
from tests.control.test_scheduling import relay
from tests.control.test_sending import to
from tests.playout.rig import Room, a_room
from tests.support.api import a_client
from tests.support.village import DONG, HA, LAN, PROVINCE, at, daily, once


@asynccontextmanager
async def an_office(folder: Path) -> AsyncIterator[tuple[Room, httpx.AsyncClient]]:
    async with a_room(folder) as room:
        token = await give_token(room.village, LAN.user_id)
        async with a_client(room.village.desk, token=token) as client:
            yield room, client


async def mine(client: httpx.AsyncClient, **more: Any) -> list[dict[str, Any]]:
    answer = await client.get(f"{API}/conflicts", params={"mine": True, **more})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def test_the_author_of_what_was_displaced_hears_of_it_within_a_second(tmp_path: Path) -> None:
    async with an_office(tmp_path) as (room, client):
        own = await room.village.bulletin("Tin xã", minutes=20)
        request = NewSchedule(DONG, ContentKind.BULLETIN, own, once(at(17)))
        await scheduling.create_schedule(room.village.desk, LAN, request)
        await room.turn()
        assert await mine(client) == []

        urgent = await room.village.bulletin("Dịch tả lợn", unit=PROVINCE, klass=BulletinClass.PRIORITY, minutes=4)
        await sending.send_bulletin(room.village.desk, HA, to(urgent, DONG, earliest=at(16)))
        before = room.clock.now()
        await room.clock.advance(0.5)  # the conductor looks this often even if no bell rings
        await room.turn()

        (lost,) = await mine(client)
        assert (room.clock.now() - before).total_seconds() <= 1
        assert (lost["title"], lost["winner_title"], lost["rule"]) == ("Tin xã", "Dịch tả lợn", "reason_ladder")
        assert lost["until"] == at(17, 4).isoformat().replace("+00:00", "Z")
        assert lost["sentence"] == '"Tin xã" không còn đủ chỗ trong khung giờ vì "Dịch tả lợn".'
        assert lost["rule_sentence"] == '"Dịch tả lợn" có mức ưu tiên cao hơn "Tin xã".'
        assert [(way["way"], way["facts"]) for way in lost["ways_out"]][:2] == [
            ("move", {"to": at(17, 4).isoformat()}),
            ("allow_wait", {"minutes": 4}),
        ]
        english = (await client.get(f"{API}/conflicts", headers={"accept-language": "en"})).json()["items"][0]
        assert english["until_sentence"] == "Until 2026-06-01T17:04:00+07:00."


async def test_what_one_changes_as_told_is_no_conflict_any_more(tmp_path: Path) -> None:
    async with an_office(tmp_path) as (room, client):
        for title in ("Một", "Hai"):
            bulletin = await room.village.bulletin(title, minutes=10)
            request = NewSchedule(DONG, ContentKind.BULLETIN, bulletin, once(at(17)), accept_conflicts=True)
            await scheduling.create_schedule(room.village.desk, LAN, request)
        await room.turn()
        (lost,) = await mine(client)
        change = scheduling.ChangeSchedule(
            lost["schedule_id"],
            scheduling.Scope.THIS,
            scheduling.ScheduleChange(moved_to=at(17, 10)),
            occurrence=at(17),
        )
        await scheduling.change_schedule(room.village.desk, LAN, change)
        await room.turn()
        assert await mine(client) == []
        assert [one["title"] for one in await mine(client, closed=True)] == ["Hai"]


async def test_a_silenced_evening_a_withdrawn_feed_and_what_is_anothers(tmp_path: Path) -> None:
    async with an_office(tmp_path) as (room, client):
        desk = room.village.desk
        bulletin = await room.village.bulletin("Tin tối")
        await scheduling.create_schedule(desk, LAN, NewSchedule(DONG, ContentKind.BULLETIN, bulletin, once(at(20, 30))))
        feed = await room.village.feed()
        await scheduling.create_schedule(desk, LAN, relay(feed, daily("11:00")))
        above = await room.village.bulletin("Tin tỉnh", unit=PROVINCE)
        await scheduling.create_schedule(
            desk, HA, NewSchedule(PROVINCE, ContentKind.BULLETIN, above, once(at(20, 40)), accept_conflicts=True)
        )
        await places.put_policy(desk, OPERATOR, PROVINCE, {"quiet": {"from": "20:00", "to": "05:00"}})
        await feeds.withdraw_offer(desk, HA, (await feeds.list_offers(desk, HA, feed))[0].id)
        await room.turn()
        told = {one["title"]: one for one in await mine(client)}
        assert set(told) == {"Tin tối", "Đài mô phỏng Một"}
        assert told["Tin tối"]["rule"] == "quiet_hours"
        assert told["Tin tối"]["until_sentence"] == "Chuyển sang giờ khác ngoài giờ yên tĩnh."
        assert told["Đài mô phỏng Một"]["until_sentence"] == "Đến khi được cấp lại quyền tiếp âm."
        for one in told.values():
            assert "…" not in one["sentence"] + one["rule_sentence"] + one["until_sentence"]


@pytest.mark.parametrize("kind", ConflictKind)
def test_every_kind_of_conflict_can_be_told_in_both_languages(kind: ConflictKind) -> None:
    facts: dict[ConflictKind, dict[str, Any]] = {
        ConflictKind.ENTRY_DROPPED: {
            "reason": "too_late",
            "rule": "reason_ladder",
            "winner_id": "w@1",
            "winner_title": "Hai",
            "until": at(17, 9).isoformat(),
        },
        ConflictKind.REFUSED_BY_POLICY: {
            "code": "day_too_long",
            "fix": "shorten_or_move",
            "planned_minutes": 90,
            "limit_minutes": 60,
        },
        ConflictKind.PLAN_TOO_LARGE: {"held_until": at(9, day=3).isoformat()},
        ConflictKind.FEED_DEAD: {"since": at(8).isoformat()},
        ConflictKind.NOT_STAGGERED: {"shift_s": 20, "fix": "allow_waiting"},
    }
    row = ConflictRow(
        id="c", unit_id=DONG, schedule_id="s", kind=kind, subject="s@1", affects_from=at(17), opened_at=at(9),
        facts={"title": "Một", **facts.get(kind, {})},
    )  # fmt: skip
    for locale in Locale:
        told = ScheduleConflict.of(row, locale)
        texts = (told.sentence, told.rule_sentence, told.until_sentence)
        assert not any("…" in text or "_" in text for text in texts), texts
