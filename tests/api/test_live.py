"""The microphone's line: who may send, what is answered, how it resumes and how it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from broadcast_server.api.router import create_api
from broadcast_server.control.live import get_live
from broadcast_server.store.words import LiveEnd, LiveState
from tests.api.test_schedules_api import give_token, told
from tests.relay.ear import Listener, decoded, pair_of
from tests.support.api import a_client
from tests.support.browser import a_browser
from tests.support.clock import settle
from tests.support.live import FIRST, SECOND, LiveVillage, a_live_village, packets
from tests.support.microphone import a_microphone
from tests.support.people import with_password
from tests.support.village import DONG, HA, LAN, NGOC, TAY, at

API = "/api/v1"


class Office:
    """Lan's console, and the application behind it."""

    def __init__(self, it: LiveVillage, app: FastAPI, client: httpx.AsyncClient, token: str) -> None:
        self.it, self.app, self.client, self.token = it, app, client, token

    async def opened(self, **more: Any) -> str:
        """A session of Lan's; its id."""
        answer = await self.client.post(f"{API}/live", json={"unit_id": DONG, **more})
        assert answer.status_code == 201, answer.text
        session_id: str = answer.json()["id"]
        return session_id

    def microphone(self, session_id: str, **headers: str) -> Any:
        return a_microphone(self.app, self.it.clock, session_id, headers)

    async def pass_by(self, seconds: float) -> None:
        await self.it.pass_by(seconds)


@asynccontextmanager
async def an_office(folder: Path) -> AsyncIterator[Office]:
    async with a_live_village(folder) as it:
        token = await give_token(it.village, LAN.user_id)
        app = create_api(it.desk, ingest=it.room)
        async with a_client(it.desk, token=token, app=app) as client:
            yield Office(it, app, client, token)


async def test_a_session_is_opened_shown_spoken_into_and_closed(tmp_path: Path):
    async with an_office(tmp_path) as office:
        answer = await office.client.post(f"{API}/live", json={"unit_id": DONG, "title": "Họp thôn", "minutes": 5})
        made = answer.json()
        assert answer.headers["location"] == f"{API}/live/{made['id']}"
        assert (made["voice"], made["nodes_planned"], made["state"]) == (f"{API}/live/{made['id']}/voice", 2, "open")
        listener = Listener(office.it.bus, made["id"])
        async with office.microphone(made["id"]) as mic:
            await mic.say(token=office.token, format="opus")
            assert mic.told[0]["ready"] is True
            assert (mic.told[0]["next"], mic.told[0]["planned"]) == (None, 2)
            await office.it.says("n1", made["id"])
            await mic.speak(packets(FIRST, 2.5))
            ack = mic.last("ack")
            assert 70 <= ack["ack"] <= 124
            assert (ack["sounding"], ack["planned"]) == (1, 2)
            assert -30 < ack["level_dbfs"] < 0
            await mic.say(close=True)
            assert mic.closed is not None
            assert mic.closed[0] == 4410
        assert pair_of(decoded(listener.packets[-50:])) == FIRST
        listed = (await office.client.get(f"{API}/live", params={"unit": DONG, "state": "closed"})).json()["items"]
        assert [(one["id"], one["end_reason"]) for one in listed] == [(made["id"], "closed")]


async def test_what_it_would_cut_is_previewed_and_refused_until_accepted(tmp_path: Path):
    async with an_office(tmp_path) as office:
        feed = await office.it.village.feed("Đài mô phỏng Tỉnh")
        relay = {"unit_id": DONG, "feed_id": feed, "starts_at": "2026-06-01T09:00:30+07:00", "length_s": 1800}
        assert (await office.client.post(f"{API}/schedules", json=relay)).status_code == 201
        await office.pass_by(60)
        shown = (await office.client.post(f"{API}/live/preview", json={"unit_id": DONG})).json()
        assert [clash["loser"]["title"] for clash in shown["preview"]["clashes"]] == ["Đài mô phỏng Tỉnh"]
        told(await office.client.post(f"{API}/live", json={"unit_id": DONG}), 409, "schedule_conflict")
        await office.opened(accept_conflicts=True)


async def test_refusals_are_problems_with_a_fix(tmp_path: Path):
    async with an_office(tmp_path) as office:
        told(await office.client.post(f"{API}/live", json={"unit_id": TAY}), 404, "unknown_unit")
        told(await office.client.post(f"{API}/live", json={"unit_id": DONG, "minutes": 31}), 403, "live_too_long")
        told(await office.client.get(f"{API}/live/khong-co"), 404, "unknown_live")
        await office.it.emergency(DONG, until=at(9, 30))
        problem = told(await office.client.post(f"{API}/live", json={"unit_id": DONG}), 403, "live_under_emergency")
        assert "Lũ về" in problem["detail"]


@pytest.mark.parametrize("origin", ["http://evil.example", "https://127.0.0.1.evil.example:8080", "null"])
async def test_a_page_of_a_stranger_opens_no_socket(tmp_path: Path, origin: str):
    async with an_office(tmp_path) as office:
        session_id = await office.opened()
        async with office.microphone(session_id, origin=origin) as mic:
            assert (mic.is_open, mic.closed) == (False, (1008, ""))


async def test_who_is_signed_in_speaks_from_our_own_page_only_and_until_the_log_out(tmp_path: Path):
    async with an_office(tmp_path) as office:
        lan = await with_password(office.it.desk, LAN)
        async with a_browser(office.it.desk, office.app) as browser:
            await browser.log_in_as(lan)
            cookie = {"cookie": f"__Host-sid={browser.cookie}"}
            session_id = await office.opened()
            for origin in ({}, {"origin": "http://127.0.0.1:9999"}, {"origin": "https://127.0.0.1"}):
                async with office.microphone(session_id, **cookie, **origin) as mic:
                    await mic.say(format="opus")
                    assert mic.told[-1]["error"]["code"] == "origin_refused"
            async with office.microphone(session_id, **cookie, origin="http://127.0.0.1") as mic:
                await mic.say(format="opus")
                assert mic.told[0]["ready"] is True
                await browser.send("DELETE", "/session")
                await office.pass_by(4)
                assert mic.told[-1]["error"]["code"] == "sign_in_over"
                assert mic.closed is not None
                assert mic.closed[0] == 4401


async def test_our_own_page_opens_one_and_a_header_may_carry_the_token(tmp_path: Path):
    async with an_office(tmp_path) as office:
        session_id = await office.opened()
        own = {"origin": "http://127.0.0.1:8080", "authorization": f"Bearer {office.token}"}
        async with office.microphone(session_id, **own) as mic:
            await mic.send(0, packets(FIRST, 0.02)[0])
            assert mic.told[0]["ready"] is True
            await office.pass_by(1.5)
            assert mic.last("ack")["ack"] == 0


async def test_nobody_is_let_in_without_a_token_and_nobody_waits_for_ever(tmp_path: Path):
    async with an_office(tmp_path) as office:
        session_id = await office.opened()
        foreign = await give_token(office.it.village, HA.user_id)
        inspector = await give_token(office.it.village, NGOC.user_id)
        for word, code, close in (
            ({}, "token_missing", 4401),
            ({"token": "guessed"}, "token_unknown", 4401),
            ({"token": foreign}, "live_of_another", 4403),
            ({"token": inspector}, "not_permitted", 4403),
            ({"token": office.token, "format": "wav"}, "voice_word_unknown", 4422),
        ):
            async with office.microphone(session_id, **{"accept-language": "en"}) as mic:
                await mic.say(**word)
                assert mic.closed is not None
                assert (mic.told[-1]["error"]["code"], mic.closed[0]) == (code, close)
                assert mic.closed[1]
        async with office.microphone(session_id) as mic:
            await mic.send(0, b"\x78\x00")
            assert mic.told[-1]["error"]["code"] == "token_missing"
        async with office.microphone(session_id) as mic:
            await office.it.clock.advance(5.1)
            assert mic.closed is not None
            assert mic.closed[0] == 4408
        async with office.microphone("khong-co") as mic:
            await mic.say(token=office.token)
            assert mic.closed is not None
            assert mic.closed[0] == 4404


async def test_a_socket_that_drops_resumes_at_4_9_s_and_not_at_5_1_s(tmp_path: Path):
    async with an_office(tmp_path) as office:
        session_id = await office.opened()
        listener = Listener(office.it.bus, session_id)
        async with office.microphone(session_id) as mic:
            await mic.say(token=office.token)
            await mic.speak(packets(FIRST, 1.0))
        await office.it.clock.advance(4.9)
        async with office.microphone(session_id) as mic:
            await mic.say(token=office.token)
            assert mic.told[0]["next"] == 50
            await mic.speak(packets(SECOND, 1.5), first=50)
        assert len({head.public_key for head in listener.heads}) == 1
        assert pair_of(decoded(listener.packets[-30:])) == SECOND
        await office.it.clock.advance(5.1)
        async with office.microphone(session_id) as mic:
            await mic.say(token=office.token)
            assert mic.closed is not None
            assert (mic.told[-1]["error"]["code"], mic.closed[0]) == ("live_lost", 4410)
        await office.it.keeper.look()
        over = await get_live(office.it.desk, LAN, session_id)
        assert (over.state, over.end_reason) == (LiveState.CLOSED, LiveEnd.LOST)


async def test_a_line_that_says_nothing_is_closed_and_one_that_renews_is_kept(tmp_path: Path):
    async with an_office(tmp_path) as office:
        session_id = await office.opened()
        async with office.microphone(session_id) as mic:
            await mic.say(token=office.token)
            await mic.speak(packets(FIRST, 0.5))
            for _ in range(4):
                await office.pass_by(4.0)
                await mic.say(renew=True)
            assert mic.closed is None
            assert (await office.client.post(f"{API}/live/{session_id}/renew")).status_code == 204
            await office.pass_by(6.0)
            assert mic.closed is not None
            assert mic.closed[0] == 4410
            assert mic.told[-1]["error"]["code"] == "live_lost"


async def test_a_second_socket_of_the_speaker_takes_over(tmp_path: Path):
    async with an_office(tmp_path) as office:
        session_id = await office.opened()
        async with office.microphone(session_id) as old, office.microphone(session_id) as new:
            await old.say(token=office.token)
            await old.speak(packets(FIRST, 0.2))
            await new.say(token=office.token)
            assert old.closed is not None
            assert (old.closed[0], new.closed) == (4409, None)
            await new.speak(packets(FIRST, 0.5), first=10)
            await office.pass_by(1.0)
            assert new.last("ack")["ack"] == 34


async def test_an_emergency_is_told_to_the_speaker_and_so_is_its_end(tmp_path: Path):
    async with an_office(tmp_path) as office:
        session_id = await office.opened()
        async with office.microphone(session_id) as mic:
            await mic.say(token=office.token)
            await mic.speak(packets(FIRST, 1.0))
            until = office.it.clock.now() + timedelta(seconds=4)
            await office.it.emergency(DONG, until=until)
            await mic.speak(packets(FIRST, 1.5), first=50)
            assert mic.last("cut") == {
                "cut": "emergency",
                "title": "Lũ về",
                "until": until.isoformat(),
                "winner_id": f"alert-{DONG}",
            }
            await mic.speak(packets(FIRST, 4.0), first=125)
            assert mic.last("cut") == {"cut": None}
            assert mic.closed is None


async def test_closing_from_elsewhere_hangs_the_microphone_up(tmp_path: Path):
    async with an_office(tmp_path) as office:
        session_id = await office.opened()
        async with office.microphone(session_id) as mic:
            await mic.say(token=office.token)
            await mic.speak(packets(FIRST, 0.5))
            assert (await office.client.post(f"{API}/live/{session_id}/close")).json()["state"] == "closed"
            await settle()
            assert mic.closed is not None
            assert mic.closed[0] == 4410


async def test_garbage_ends_the_line_and_not_the_session(tmp_path: Path):
    async with an_office(tmp_path) as office:
        session_id = await office.opened()
        for frame in (b"", b"\x00\x00", b"\x00\x00\x00\x01"):
            async with office.microphone(session_id) as mic:
                await mic.say(token=office.token)
                await mic.send_raw(frame)
                assert mic.closed is not None
                assert mic.closed[0] == 4422
        async with office.microphone(session_id) as mic:
            await mic.say(token=office.token)
            for number in range(400):
                await mic.send(number, b"\xff" * 3_000)
            assert mic.closed is not None
            assert (mic.closed[0], mic.told[-1]["error"]["code"]) == (4400, "voice_abusive")
        async with office.microphone(session_id) as mic:
            await mic.say(token=office.token)
            for _ in range(100):
                await mic.say(renew=True)
            assert mic.closed is not None
            assert mic.closed[0] == 4400
        assert (await get_live(office.it.desk, LAN, session_id)).state is LiveState.OPEN


async def test_a_server_without_an_engine_room_says_so(tmp_path: Path):
    async with an_office(tmp_path) as office, a_client(office.it.desk, token=office.token) as client:
        told(await client.post(f"{API}/live", json={"unit_id": DONG}), 503, "live_not_leading")
