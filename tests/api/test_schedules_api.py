"""Schedules over HTTP: every refusal is a problem that names the field and the fix, in the reader's language."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from broadcast_server.store.people import secret_hash
from broadcast_server.store.session import Session
from broadcast_server.store.tables import TokenRow
from tests.support.api import a_client
from tests.support.village import DONG, LAN, NGOC, PROVINCE, Village, a_village, at

API = "/api/v1"


async def give_token(village: Village, user_id: str) -> str:
    def write(session: Session) -> None:
        session.add(
            TokenRow(
                id=f"token-{user_id}",
                user_id=user_id,
                secret_hash=secret_hash(f"secret-{user_id}"),
                name="test",
                created_at=village.clock.now(),
            )
        )

    await village.desk.store.begin(write)
    return f"secret-{user_id}"


@asynccontextmanager
async def an_office(user_id: str = LAN.user_id) -> AsyncIterator[tuple[Village, httpx.AsyncClient]]:
    async with a_village() as village:
        token = await give_token(village, user_id)
        async with a_client(village.desk, token=token) as client:
            yield village, client


def told(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    return problem


def wanted(bulletin: str, **more: Any) -> dict[str, Any]:
    return {"unit_id": DONG, "bulletin_id": bulletin, **more}


async def test_a_broadcaster_places_a_bulletin_and_sees_what_it_does() -> None:
    async with an_office() as (village, client):
        bulletin = await village.bulletin()
        body = wanted(bulletin, starts_at="2026-06-01T17:00:00+07:00")
        answer = await client.post(f"{API}/schedules", json=body)
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert answer.headers["location"] == f"{API}/schedules/{made['id']}"
        assert [one["start"] for one in made["preview"]["stretches"]] == ["2026-06-01T10:00:00Z"]
        assert [notice["code"] for notice in made["preview"]["notices"]] == ["no_cluster_online"]
        again = await client.get(answer.headers["location"])
        assert again.headers["etag"] == '"1"'
        listed = (await client.get(f"{API}/schedules", params={"unit": DONG, "coming": True})).json()
        assert [one["id"] for one in listed["items"]] == [made["id"]]


async def test_every_wrong_request_names_field_and_fix_in_both_languages() -> None:
    async with an_office() as (village, client):
        good = await village.bulletin()
        unapproved = await village.bulletin("Nháp", approved=False)
        silent = await village.bulletin("Chưa đọc", with_asset=False)
        soon = "2026-06-01T17:00:00+07:00"
        cases: list[tuple[dict[str, Any], int, str, str]] = [
            (wanted(good, starts_at="2026-06-01T17:00:00"), 422, "naive_time", "starts_at"),
            (wanted(good, rule={"kind": "once", "at": "2026-06-01T17:00:00"}), 422, "naive_time", "rule.at"),
            (wanted(good, starts_at="2026-05-31T17:00:00+07:00"), 422, "past_time", "rule.at"),
            (wanted(good, starts_at="2026-06-02T03:15:00+07:00"), 403, "quiet_hours", "rule"),
            (
                wanted(good, starts_at=soon, targets=[{"kind": "unit", "ref": "nowhere"}]),
                422,
                "unknown_target",
                "targets[0].ref",
            ),
            (wanted(unapproved, starts_at=soon), 403, "blocked_approval_void", "content_id"),
            (wanted(silent, starts_at=soon), 409, "blocked_asset_missing", "content_id"),
            (wanted("unknown", starts_at=soon), 404, "unknown_bulletin", "content_id"),
            ({"unit_id": DONG, "starts_at": soon}, 422, "one_of", "bulletin_id"),
            (wanted(good), 422, "one_of", "rule"),
            (
                wanted(good, rule={"kind": "weekly", "weekdays": ["mo"], "times": ["25:00"]}),
                422,
                "not_a_time",
                "rule.times[0]",
            ),
        ]
        for body, status, code, field in cases:
            for language in ("vi", "en"):
                answer = await client.post(f"{API}/schedules", json=body, headers={"Accept-Language": language})
                problem = told(answer, status, code)
                assert problem["field"] == field
                assert problem["fix"], problem
                assert code not in problem["detail"]
        assert (await client.get(f"{API}/schedules")).json()["items"] == []


async def test_an_overlap_is_a_conflict_with_ways_out_until_it_is_accepted() -> None:
    async with an_office() as (village, client):
        feed = await village.feed("Đài mô phỏng Tỉnh")
        times = {"kind": "weekly", "weekdays": ["mo"], "times": ["17:00"]}
        relay = {"unit_id": DONG, "feed_id": feed, "rule": times, "length_s": 1800}
        assert (await client.post(f"{API}/schedules", json=relay)).status_code == 201
        bulletin = await village.bulletin("Tin xã")
        body = wanted(bulletin, starts_at="2026-06-01T17:10:00+07:00", max_wait_s=1800)
        preview = (await client.post(f"{API}/schedules/preview", json=body)).json()
        [clash] = preview["clashes"]
        assert (clash["effect"], clash["winner"]["title"]) == ("waits", "Đài mô phỏng Tỉnh")
        assert clash["sentence"] == '"Đài mô phỏng Tỉnh" có mức ưu tiên cao hơn "Tin xã".'
        problem = told(await client.post(f"{API}/schedules", json=body), 409, "schedule_conflict")
        assert problem["facts"]["conflicts"][0]["ways_out"][0]["way"] == "move"
        accepted = await client.post(f"{API}/schedules", json=body | {"accept_conflicts": True})
        assert accepted.json()["preview"]["stretches"][0]["start"] == "2026-06-01T10:30:00Z"


async def test_a_request_sent_twice_with_one_key_is_done_once() -> None:
    async with an_office() as (village, client):
        bulletin = await village.bulletin()
        body = wanted(bulletin, starts_at="2026-06-01T17:00:00+07:00")
        answers = [
            await client.post(f"{API}/schedules", json=body, headers={"Idempotency-Key": "mot"}) for _ in range(2)
        ]
        assert answers[0].json() == answers[1].json()
        assert answers[1].headers["idempotency-replayed"] == "true"
        assert len((await client.get(f"{API}/schedules")).json()["items"]) == 1


async def test_change_and_cancel_with_the_version_that_was_seen() -> None:
    async with an_office() as (village, client):
        bulletin = await village.bulletin()
        rule = {"kind": "weekly", "weekdays": ["mo", "tu", "we"], "times": ["17:00"]}
        made = (await client.post(f"{API}/schedules", json=wanted(bulletin, rule=rule))).json()
        place = f"{API}/schedules/{made['id']}"
        move = {"scope": "this", "occurrence": "2026-06-02T10:00:00Z", "moved_to": "2026-06-02T11:00:00Z"}
        stale = await client.post(f"{place}/change", json=move, headers={"If-Match": '"9"'})
        told(stale, 412, "version_changed")
        moved = await client.post(f"{place}/change", json=move, headers={"If-Match": '"1"'})
        assert (moved.status_code, moved.headers["etag"]) == (200, '"2"')
        assert moved.json()["exceptions"][0]["moved_to"] == "2026-06-02T11:00:00Z"
        onwards = {"scope": "from_here", "occurrence": "2026-06-03T10:00:00Z", "name": "Mới"}
        split = (await client.post(f"{place}/change", json=onwards)).json()
        assert (split["id"] != made["id"], split["series_id"]) == (True, made["series_id"])
        told(await client.post(f"{place}/cancel", json={"scope": "this"}), 422, "missing_field")
        gone = await client.post(f"{API}/schedules/{split['id']}/cancel", json={"scope": "all"})
        assert gone.json()["state"] == "cancelled"
        told(await client.post(f"{place}/cancel", json={"scope": "all"}), 409, "schedule_over")  # one series


async def test_play_now_outlook_explain_and_stop() -> None:
    async with an_office() as (village, client):
        bulletin = await village.bulletin("Tìm trẻ lạc", minutes=2)
        order = {"unit_id": DONG, "bulletin_id": bulletin, "targets": [{"kind": "cluster", "ref": f"c1-{DONG}"}]}
        playing = (await client.post(f"{API}/play-now", json=order)).json()
        assert playing["starts_at"] == "2026-06-01T02:00:05Z"
        [hearing] = (await client.get(f"{API}/outlook", params={"cluster": f"c1-{DONG}"})).json()
        assert [one["entry_id"] for one in hearing["segments"]] == [playing["entry_id"]]
        by_unit = (await client.get(f"{API}/outlook", params={"unit": DONG})).json()
        assert sorted(len(one["segments"]) for one in by_unit) == [0, 1]
        await village.clock.advance(65)
        why = await client.get(f"{API}/explain", params={"cluster": f"c1-{DONG}", "at": at(9, 1).isoformat()})
        assert (why.json()["code"], why.json()["sounding"]["title"]) == ("explain_sounds", "Tìm trẻ lạc")
        assert why.json()["sentence"].startswith('Lúc 2026-06-01T09:01:00+07:00 phát "Tìm trẻ lạc"')
        stopped = (await client.post(f"{API}/stop", json={"entry_id": playing["entry_id"]})).json()
        assert stopped["heard_ms"] == 60_000
        params = {"cluster": f"c1-{DONG}", "at": at(9, 1, 30).isoformat()}
        silent = (await client.get(f"{API}/explain", params=params)).json()
        assert (silent["code"], silent["facts"]["by"]) == ("explain_cut", "lan")
        naive = await client.get(f"{API}/explain", params={"cluster": "x", "at": "2026-06-01T09:00:00"})
        told(naive, 422, "naive_time")
        told(await client.get(f"{API}/outlook"), 422, "one_of")


async def test_an_inspector_reads_and_places_nothing() -> None:
    async with an_office(NGOC.user_id) as (village, client):
        bulletin = await village.bulletin()
        body = wanted(bulletin, starts_at="2026-06-01T17:00:00+07:00")
        told(await client.post(f"{API}/schedules", json=body), 403, "not_permitted")
        assert (await client.get(f"{API}/outlook", params={"unit": PROVINCE})).status_code == 200


async def test_pages_follow_one_another_without_gap_or_repetition() -> None:
    async with an_office() as (village, client):
        bulletin = await village.bulletin(minutes=1)
        for hour in range(10, 17):
            body = wanted(bulletin, starts_at=f"2026-06-01T{hour}:00:00+07:00")
            assert (await client.post(f"{API}/schedules", json=body)).status_code == 201
        seen: list[str] = []
        params: dict[str, Any] = {"limit": 3}
        while True:
            page = (await client.get(f"{API}/schedules", params=params)).json()
            seen += [one["starts_at"] for one in page["items"]]
            if page["next"] is None:
                break
            params["cursor"] = page["next"]
        assert seen == sorted(seen, reverse=True)
        assert len(set(seen)) == 7
