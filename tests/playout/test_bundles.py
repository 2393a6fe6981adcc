"""A commune without any network: what it needs is carried there, and what it played is carried back."""

from __future__ import annotations

import asyncio
import hashlib
import random
import tarfile
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.errors import Conflict, Corrupt, NotFound
from broadcast_server.playout import bundles
from broadcast_server.playout.configs import StationFacts
from broadcast_server.playout.planner import Planner
from broadcast_server.signer.time_key import TimeKey, time_folder
from broadcast_server.supervise import InlineExecutor
from firmware_sim import carry
from firmware_sim.carry import TakenIn
from firmware_sim.clock import MS
from firmware_sim.reports import DeviceLog
from firmware_sim.store import Disk, Identity
from simulation.world.time import VirtualTime
from speaker_protocol.carry import Carried, CarriedKind, NotCarried, write
from tests.firmware_sim.tones import ogg_opus, tone
from tests.firmware_sim.workshop import Office, Workshop, on_virtual_time
from tests.firmware_sim.world import inline
from tests.playout.rig import FAR, NODE, Room, a_room
from tests.support.clock import FakeChance
from tests.support.village import DONG, PROVINCE, TAY, at, once

TUNE = ogg_opus(tone((700, 1600), 12.0))
SHA = hashlib.sha256(TUNE).hexdigest()
DAY = timedelta(days=1)


def parts(room: Room, folder: Path, days: int = 14) -> bundles.Parts:
    (folder / f"{SHA}.opus").write_bytes(TUNE)
    return bundles.Parts(
        store=room.store,
        signer=room.server.signer,
        answers=TimeKey(time_folder(room.keys), chance=FakeChance(97)),
        planner=Planner(plan_days=days),
        clock=room.clock,
        executor=InlineExecutor(),
        sound=lambda sha: folder / f"{sha}.opus",
        facts=StationFacts(assets_url="http://127.0.0.1:8080/api/v1/assets", status_interval_s=30),
    )


def identity(room: Room, node: str = NODE) -> Identity:
    speaker = room.nodes[node]
    return Identity(
        private_key=speaker.key.private_bytes_raw().hex(),
        node_id=node,
        cluster_id=f"c1-{DONG}",
        broker={"host": "127.0.0.1", "port": 1},  # type: ignore[arg-type]
        username=node,
        password="x",
        root_public_key=room.server.signer.root_public().hex(),
        path=speaker.path,
        assets_url="http://127.0.0.1:8080/api/v1/assets",
        asset_token="t",
    )


def import_on(disk: Disk, who: Identity, file: Path, at_ms: int) -> TakenIn:
    with Carried(file, CarriedKind.BUNDLE) as carried:
        return carry.take_in(who, disk, carried, device_ns=at_ms * MS)


async def imported(disk: Disk, who: Identity, file: Path, at_ms: int) -> TakenIn:
    return await asyncio.to_thread(import_on, disk, who, file, at_ms)


def plays_alone(folder: Path, who: Identity, room: Room, seconds: float) -> list[tuple[tuple[int, int], float, float]]:
    """Switch the node on where nothing reaches it; what was heard, in seconds from now."""
    start = room.clock.now()

    async def story(time: VirtualTime) -> list[tuple[tuple[int, int], float, float]]:
        office = Office(time)
        office.is_reachable = False
        shop = Workshop(time, folder, office=office, identity=who)
        await shop.pass_s(seconds)
        return await shop.sounded(to_ms(start))

    return on_virtual_time(story, start=start)


async def test_a_commune_without_network_plays_what_was_carried_and_its_play_log_comes_back(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        await room.announce(once(at(9, 2)), minutes=0.2, sound=TUNE)
        file = tmp_path / "dong.bundle"
        made = await bundles.export(parts(room, tmp_path), DONG, file)
        assert (len(made.nodes), made.assets, made.missing) == (2, 1, ())
        who = identity(room)
        disk = Disk(tmp_path / NODE)

        taken = await imported(disk, who, file, to_ms(room.clock.now()))
        assert (taken.refused, taken.missing, taken.assets, taken.is_clock_known) == ([], [], [SHA], True)
        assert {topic.rpartition("/")[2] for topic in taken.accepted} == {"keys", "config", "alert", "plan"}
        found = await asyncio.to_thread(plays_alone, tmp_path, who, room, 180.0)
        ((pair, start, end),) = found
        assert (pair, round(start), round(end)) == ((700, 1600), 120, 132)

        back = tmp_path / "dong.reports"
        assert carry.give_out([(who, disk)], back, made_ms=0) == {NODE: 2}
        await room.clock.advance(600)
        server = room.server
        returned = await bundles.take_reports(room.store, server.inbox, server.judge, back)
        await room.turn()
        assert (returned.reports, returned.new, returned.refused) == (2, 2, {})
        assert (await room.verdicts())[NODE] == "played"
        again = await bundles.take_reports(room.store, server.inbox, server.judge, back)
        assert again.new == 0

        second = tmp_path / "next.bundle"
        await bundles.export(parts(room, tmp_path), DONG, second)
        taken = await imported(disk, who, second, to_ms(room.clock.now()))
        assert (taken.acknowledged, taken.refused) == (2, [])
        log = DeviceLog(disk, inline, random.Random(1))
        log.load()
        assert (log.waiting, log.head[0]) == (0, 2)


async def test_what_the_network_would_refuse_is_refused_from_a_stick_with_the_same_reasons(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        file, older = tmp_path / "new.bundle", tmp_path / "old.bundle"
        await bundles.export(parts(room, tmp_path), DONG, older)
        await room.announce(once(at(17)), minutes=0.2, sound=TUNE)
        await bundles.export(parts(room, tmp_path), DONG, file)
        who, now_ms = identity(room), to_ms(room.clock.now())

        def rewritten(name: str, change) -> Path:
            with Carried(file, CarriedKind.BUNDLE) as carried:
                messages = [(topic, change(topic, raw)) for topic, raw in carried.messages()]
            target = tmp_path / name
            with target.open("wb") as out:
                write(out, CarriedKind.BUNDLE, messages, [(SHA, tmp_path / f"{SHA}.opus")], subject="x", made_ms=0)
            return target

        plan = f"loa/1/node/{NODE}/plan"
        bent = rewritten(
            "bent", lambda topic, raw: raw[:-70] + bytes([raw[-70] ^ 1]) + raw[-69:] if topic == plan else raw
        )
        taken = await imported(Disk(tmp_path / "a" / NODE), who, bent, now_ms)
        assert [topic for topic, _ in taken.refused] == [plan]
        assert (taken.refused, taken.assets) == ([(plan, "body")], [])

        stranger = identity(room).model_copy(
            update={"root_public_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()}
        )
        taken = await imported(Disk(tmp_path / "b" / NODE), stranger, file, now_ms)
        assert (taken.accepted, taken.assets) == ([], [])
        assert {reason for _, reason in taken.refused} == {"unknown_key"}

        disk = Disk(tmp_path / "c" / NODE)
        assert (await imported(disk, who, file, now_ms)).refused == []
        assert {reason for _, reason in (await imported(disk, who, older, now_ms)).refused} == {"older"}
        assert (await imported(disk, who, file, now_ms)).refused == []  # the same again does no harm
        late = now_ms + 40 * 86_400_000
        assert ("expired" in {reason for _, reason in (await imported(disk, who, file, late)).refused}) is True

        far = identity(room, FAR)
        taken = await imported(Disk(tmp_path / "d" / FAR), far, file, now_ms)
        assert not any("/plan" in topic or "/config" in topic for topic in taken.accepted)

        (tmp_path / f"{SHA}.opus").write_bytes(TUNE[:-1])
        lying = rewritten("lying", lambda _topic, raw: raw)
        taken = await imported(Disk(tmp_path / "e" / NODE), who, lying, now_ms)
        assert taken.refused == [(f"assets/{SHA}", "the bytes are not the asset's")]


@pytest.mark.parametrize(("chip_days", "is_known"), [(0, True), (59, True), (-1, False), (61, False), (-9_000, False)])
async def test_a_stick_cannot_set_the_clock_and_a_plausible_chip_is_a_holdover(
    tmp_path: Path, chip_days: int, is_known: bool
):
    async with a_room(tmp_path / "keys") as room:
        file = tmp_path / "dong.bundle"
        await bundles.export(parts(room, tmp_path, days=7), DONG, file)
        who = identity(room)
        chip_ms = to_ms(room.clock.now() + chip_days * DAY)
        taken = await imported(Disk(tmp_path / NODE), who, file, chip_ms)
        assert taken.is_clock_known is is_known


async def test_no_nodes_no_unit_and_no_overwriting(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        with pytest.raises(NotFound, match="unknown_unit"):
            await bundles.export(parts(room, tmp_path), "nowhere", tmp_path / "x")
        made = await bundles.export(parts(room, tmp_path), PROVINCE, tmp_path / "x")
        assert len(made.nodes) == 3
        with pytest.raises(Conflict, match="bundle_exists"):
            await bundles.export(parts(room, tmp_path), TAY, tmp_path / "x")


async def test_a_file_that_is_none_changes_nothing(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        file = tmp_path / "dong.bundle"
        await bundles.export(parts(room, tmp_path), DONG, file)
        whole = file.read_bytes()
        who, now_ms = identity(room), to_ms(room.clock.now())
        for number, content in enumerate((b"", b"x" * 2_000, whole[: len(whole) // 2], whole[:700])):
            cut = tmp_path / f"cut-{number}"
            cut.write_bytes(content)
            disk = Disk(tmp_path / f"n{number}")
            with pytest.raises(NotCarried):
                await imported(disk, who, cut, now_ms)
            assert [path.name for path in disk.root.iterdir()] == ["assets"]
            with pytest.raises(Corrupt, match="bundle_damaged"):
                await bundles.take_reports(room.store, room.server.inbox, room.server.judge, cut)


def test_only_plain_files_under_the_names_of_the_manifest_are_read(tmp_path: Path):
    good = tmp_path / "good"
    with good.open("wb") as out:
        write(out, CarriedKind.BUNDLE, [("loa/1/node/n/plan", b"p")], subject="x", made_ms=0)
    evil = tmp_path / "evil"
    with tarfile.open(good) as source, tarfile.open(evil, "w") as target:
        for member in source:
            content = source.extractfile(member)
            if member.name.startswith("messages/"):
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
                content = None
            target.addfile(member, content)
    with Carried(evil, CarriedKind.BUNDLE) as carried, pytest.raises(NotCarried, match="is missing"):
        carried.messages()
    with pytest.raises(NotCarried, match="kind"):
        Carried(good, CarriedKind.REPORTS)
