"""Bulletins, programmes and audio over HTTP, with the real decoder: upload, speak, approve, fetch by ranges."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from broadcast_server.control import library
from broadcast_server.control.access import OPERATOR
from broadcast_server.domain.errors import Invalid
from broadcast_server.store.people import secret_hash
from broadcast_server.store.session import Session
from broadcast_server.store.tables import NodeRow
from broadcast_server.store.words import Role
from tests.api.test_schedules_api import API, give_token, told
from tests.support.api import a_client
from tests.support.people import a_person
from tests.support.studio import HummingSpeaker, an_audio_room, with_room
from tests.support.village import DONG, LAN, NGOC, Village, a_village

SAMPLES = Path(__file__).parents[2] / "audio_samples"


@asynccontextmanager
async def a_library(
    tmp_path: Path, *, voice: bool = True, free_bytes: int = 10**12, user_id: str = LAN.user_id
) -> AsyncIterator[tuple[Village, httpx.AsyncClient]]:
    speaker = HummingSpeaker() if voice else None
    async with (
        a_village() as village,
        an_audio_room(tmp_path, speaker=speaker, free_bytes=free_bytes) as room,
    ):
        furnished = Village(with_room(village.desk, room))
        token = await give_token(furnished, user_id)
        async with a_client(furnished.desk, token=token) as client:
            yield furnished, client


async def a_bulletin(client: httpx.AsyncClient, title: str = "Tin") -> str:
    answer = await client.post(f"{API}/bulletins", json={"unit_id": DONG, "title": title})
    assert answer.status_code == 201, answer.text
    made: str = answer.json()["id"]
    return made


async def an_upload(client: httpx.AsyncClient, bulletin: str, content: bytes) -> httpx.Response:
    return await client.post(f"{API}/bulletins/{bulletin}/versions/audio", files={"file": ("a.mp3", content)})


async def approve(village: Village, client: httpx.AsyncClient, version: dict[str, Any], place: str) -> httpx.Response:
    """Submitted by who wrote it, approved by a leader of the commune."""
    heard = {"content_hash": version["content_hash"]}
    submitted = await client.post(f"{place}/submission", json=heard)
    assert submitted.status_code == 200, submitted.text
    leader = await a_person(village.desk, Role.LEADER, DONG)
    async with a_client(village.desk, token=await give_token(village, leader.actor.user_id)) as other:
        return await other.post(f"{place}/approval", json=heard)


async def test_an_upload_becomes_a_draft_that_is_approved_by_its_hash_and_then_placed(tmp_path: Path) -> None:
    async with a_library(tmp_path) as (village, client):
        bulletin = await a_bulletin(client)
        draft = (await an_upload(client, bulletin, (SAMPLES / "announcement_a.mp3").read_bytes())).json()
        assert (draft["state"], draft["media"], draft["number"]) == ("draft", "audio", 1)
        place = f"{API}/bulletins/{bulletin}/versions/{draft['id']}"
        heard = {"content_hash": draft["content_hash"]}
        told(await client.post(f"{place}/submission", json={"content_hash": "0" * 64}), 409, "content_changed")
        told(await client.post(f"{place}/approval", json=heard), 409, "not_submitted")
        assert (await client.post(f"{place}/submission", json=heard)).json()["state"] == "submitted"
        told(await client.post(f"{place}/approval", json=heard), 403, "author_approves")
        ((waits),) = (await client.get(f"{API}/approvals")).json()["versions"]
        assert (waits["version_id"], waits["created_by"]) == (draft["id"], "lan")
        assert (await client.post(f"{place}/withdrawal")).json()["state"] == "draft"
        refused = await client.post(f"{place}/rejection", json=heard | {"reason": "Sai ngày"})
        told(refused, 409, "not_submitted")
        approved = (await approve(village, client, draft, place)).json()
        assert (approved["state"], approved["approved_by"]) == ("approved", approved["approved_by"])
        assert approved["approved_by"] != "lan"
        body = {"unit_id": DONG, "bulletin_id": bulletin, "starts_at": "2026-06-01T17:00:00+07:00"}
        assert (await client.post(f"{API}/schedules", json=body)).status_code == 201
        (stage,) = (await client.get(f"{API}/bulletins/{bulletin}/stages")).json()
        assert stage["stage"] == "scheduled"
        assert [one["step"] for one in stage["steps"]] == ["write", "submit", "withdraw", "submit", "approve"]


async def test_text_is_spoken_and_a_new_wording_starts_unapproved(tmp_path: Path) -> None:
    async with a_library(tmp_path) as (village, client):
        bulletin = await a_bulletin(client)
        first = (
            await client.post(f"{API}/bulletins/{bulletin}/versions/text", json={"text": "Xin chào bà con."})
        ).json()
        place = f"{API}/bulletins/{bulletin}/versions/{first['id']}"
        await approve(village, client, first, place)
        second = (await client.post(f"{API}/bulletins/{bulletin}/versions/text", json={"text": "Xin chào."})).json()
        khmer = {"text": "Suostei.", "language": "khm", "voice": "south"}
        assert (await client.post(f"{API}/bulletins/{bulletin}/versions/text", json=khmer)).status_code == 201
        shown = (await client.get(f"{API}/bulletins/{bulletin}")).json()
        states = {(one["language"], one["number"]): one["state"] for one in shown["versions"]}
        assert states == {("vie", 1): "approved", ("vie", 2): "draft", ("khm", 1): "draft"}
        assert second["content_hash"] != first["content_hash"]
        recalled = await client.post(f"{API}/bulletins/{bulletin}/recall")
        assert {one["state"] for one in recalled.json()["versions"]} == {"recalled"}
        again = await client.post(f"{place}/submission", json={"content_hash": first["content_hash"]})
        told(again, 409, "version_recalled")


async def test_what_is_no_audio_is_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    async with a_library(tmp_path) as (village, client):
        bulletin = await a_bulletin(client)
        good = (SAMPLES / "announcement_a.mp3").read_bytes()
        for content, code in (
            (b"", "file_empty"),
            (b"#EXTM3U\nhttp://169.254.169.254/\n", "playlist_not_audio"),
            (b"chao ba con " * 1000, "not_audio"),
            (good[: len(good) // 2 + 7], "truncated"),
        ):
            problem = told(await an_upload(client, bulletin, content), 422, code)
            assert problem["detail"]
        assert (await client.get(f"{API}/assets")).json()["items"] == []
        assert list(village.desk.audio.assets.hashes()) == []
        assert (await client.get(f"{API}/bulletins/{bulletin}")).json()["versions"] == []


async def test_a_stream_is_counted_as_it_comes_in(tmp_path: Path) -> None:
    async with a_library(tmp_path) as (village, client):

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"\0" * 65_536

        with pytest.raises(Invalid, match="body_too_large"):
            await library.received(village.desk, endless(), limit_bytes=1_000_000).__aenter__()
        bulletin = await a_bulletin(client)
        sound = (SAMPLES / "announcement_b.opus").read_bytes()
        headers = {"Content-Type": "audio/ogg"}
        put = await client.put(f"{API}/bulletins/{bulletin}/audio/vie", content=sound, headers=headers)
        assert put.status_code == 201, put.text


async def test_a_full_disk_refuses_the_upload(tmp_path: Path) -> None:
    async with a_library(tmp_path, free_bytes=1000) as (_, client):
        bulletin = await a_bulletin(client)
        answer = await an_upload(client, bulletin, (SAMPLES / "announcement_a.mp3").read_bytes())
        told(answer, 507, "disk_full")


async def test_without_an_engine_nothing_is_spoken(tmp_path: Path) -> None:
    async with a_library(tmp_path, voice=False) as (_, client):
        bulletin = await a_bulletin(client)
        answer = await client.post(f"{API}/bulletins/{bulletin}/versions/text", json={"text": "Xin chào."})
        assert told(answer, 503, "speech_missing")["fix"]


async def test_a_programme_is_rendered_with_cues_and_approved(tmp_path: Path) -> None:
    async with a_library(tmp_path) as (village, client):
        bulletins = [await a_bulletin(client, f"Mục {number}") for number in (1, 2)]
        items: list[dict[str, str]] = [{"bulletin_id": one} for one in bulletins]
        body = {"unit_id": DONG, "title": "Chương trình", "items": items}
        programme = (await client.post(f"{API}/programmes", json=body)).json()
        place = f"{API}/programmes/{programme['id']}"
        problem = told(await client.post(f"{place}/rendering"), 403, "item_not_approved")
        assert problem["field"] == "items[0]"
        for number, bulletin in enumerate(bulletins, 1):
            sound = (SAMPLES / f"programme_item_{number + 1}.opus").read_bytes()
            version = (await an_upload(client, bulletin, sound)).json()
            await approve(village, client, version, f"{API}/bulletins/{bulletin}/versions/{version['id']}")
        rendered = (await client.post(f"{place}/rendering")).json()
        report = (await client.get(f"{API}/assets/{rendered['asset_sha256']}/report")).json()
        assert [cue["item_id"] for cue in report["cues"]] == ["1", "2"]
        assert report["duration_ms"] > 10_000
        approved = (await approve(village, client, rendered, place)).json()
        assert approved["approved_hash"] == rendered["content_hash"]
        voided = (await client.patch(place, json={"items": items[:1]})).json()
        assert (voided["asset_sha256"], voided["approved_hash"]) == (None, None)


async def test_a_node_fetches_ranges_with_its_own_token_and_strangers_nothing(tmp_path: Path) -> None:
    async with a_library(tmp_path) as (village, client):
        bulletin = await a_bulletin(client)
        version = (await an_upload(client, bulletin, (SAMPLES / "announcement_a.mp3").read_bytes())).json()
        sha256 = version["asset_sha256"]

        def enrol(session: Session) -> None:
            session.add(
                NodeRow(
                    id="node1",
                    unit_id=DONG,
                    cluster_id=f"c1-{DONG}",
                    public_key="a" * 64,
                    hardware="sim",
                    firmware="1",
                    broker_password_line="x",
                    asset_token_hash=secret_hash("node-secret"),
                    enrolled_at=village.clock.now(),
                )
            )

        await village.desk.store.begin(enrol)
        place = f"{API}/assets/{sha256}"
        async with a_client(village.desk, token="node-secret") as node:
            whole = await node.get(place)
            assert (whole.status_code, whole.headers["etag"]) == (200, f'"{sha256}"')
            assert hashlib.sha256(whole.content).hexdigest() == sha256
            size = len(whole.content)
            part = await node.get(place, headers={"Range": "bytes=100-199"})
            assert (part.status_code, part.headers["content-range"]) == (206, f"bytes 100-199/{size}")
            assert part.content == whole.content[100:200]
            rest = await node.get(place, headers={"Range": f"bytes={size - 50}-", "If-Range": f'"{sha256}"'})
            assert rest.content == whole.content[-50:]
            outside = await node.get(place, headers={"Range": f"bytes={size}-"})
            assert (outside.status_code, outside.headers["content-range"]) == (416, f"bytes */{size}")
            known = await node.get(place, headers={"If-None-Match": f'"{sha256}"'})
            assert (known.status_code, known.content) == (304, b"")
            many = ",".join(f"{n}-{n}" for n in range(0, 100, 10))
            told(await node.get(place, headers={"Range": f"bytes={many}"}), 422, "too_many_ranges")
            told(await node.get(f"{API}/assets/{'0' * 64}"), 404, "unknown_asset")
            told(await node.get(f"{API}/bulletins"), 401, "token_unknown")
        async with a_client(village.desk, token="somebody") as stranger:
            told(await stranger.get(place), 401, "token_unknown")
        async with a_client(village.desk) as nobody:
            told(await nobody.get(place), 401, "token_missing")


async def test_retention_takes_what_nothing_uses_and_keeps_the_rest(tmp_path: Path) -> None:
    async with a_library(tmp_path) as (village, client):
        kept, gone = await a_bulletin(client, "Giữ"), await a_bulletin(client, "Bỏ")
        first = (await an_upload(client, kept, (SAMPLES / "announcement_a.mp3").read_bytes())).json()
        second = (await an_upload(client, gone, (SAMPLES / "announcement_b.opus").read_bytes())).json()
        await client.post(f"{API}/bulletins/{gone}/recall")
        assert (await library.collect_assets(village.desk, OPERATOR)).assets == ()
        await village.clock.advance(31 * 86_400)
        done = await library.collect_assets(village.desk, OPERATOR)
        assert done.assets == (second["asset_sha256"],)
        listed = (await client.get(f"{API}/assets")).json()["items"]
        assert [one["sha256"] for one in listed] == [first["asset_sha256"]]
        told(await client.get(f"{API}/assets/{second['asset_sha256']}"), 404, "unknown_asset")


async def test_an_inspector_writes_nothing(tmp_path: Path) -> None:
    async with a_library(tmp_path, user_id=NGOC.user_id) as (village, client):
        bulletin = await village.bulletin()
        told(await client.post(f"{API}/bulletins", json={"unit_id": DONG, "title": "x"}), 403, "not_permitted")
        told(await an_upload(client, bulletin, b"x"), 403, "not_permitted")
        found = (await client.get(f"{API}/bulletins", params={"q": "lich tiem"})).json()["items"]
        assert [one["id"] for one in found] == [bulletin]
