"""Broker, server and disk fail in the middle of a broadcast; the village is heard all the same."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broadcast_server.supervise import Child
from firmware_sim.ear import heard
from simulation.listening import Recording, read_recordings, to_ns
from simulation.radio import Station
from simulation.samples import sample
from simulation.village import COMMUNE, PULLED, Village, VillageError
from tests.firmware_sim.world import needs_mosquitto
from tests.support.until import until

pytestmark = pytest.mark.e2e

NODES = 3


@contextlib.asynccontextmanager
async def a_village(folder: Path) -> AsyncIterator[tuple[Village, Child]]:
    """A server, a station that serves `station_pull`, and three nodes that record."""
    async with Station.of_sample("station_pull") as station, Village(folder) as village:
        village.settings = {"LOA_RELAY__ALLOW_PRIVATE": f'["{station.authority}"]'}
        await village.settle_in()
        await village.open_day_and_night()
        await village.add_feeds(pulled_url=station.url)
        record = ["--record", str(folder / "recordings"), "--clock-offset-ms", "-200:200", "--drift-ppm", "-50:50"]
        async with village.nodes(NODES, identity=folder / "nodes", arguments=record) as fleet:
            await village.until_ready(NODES, fleet)
            yield village, fleet


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def until_at(instant: datetime) -> None:
    await until(lambda: datetime.now(UTC) >= instant, timeout_s=120)


def sounded_s(recording: Recording, name: str, start: datetime, end: datetime) -> float:
    """How many seconds of `[start, end)` a node sounded the tones of a sample."""
    first, last = to_ns(start), to_ns(end)
    pair = sample(name).tones
    return sum(
        max(0, min(each.end_ns, last) - max(each.start_ns, first)) / 1e9
        for each in heard(recording.pcm, recording.sample0_ns)
        if each.pair == pair
    )


def first_sound(recording: Recording, name: str, start: datetime) -> float:
    """Seconds after `start` at which a node first sounded a sample's tones at or after it, less 50 ms."""
    pair = sample(name).tones
    starts = [each.start_ns for each in heard(recording.pcm, recording.sample0_ns) if each.pair == pair]
    return min(at for at in starts if at >= to_ns(start) - 50_000_000) / 1e9 - to_ns(start) / 1e9


@needs_mosquitto
async def test_a_relay_goes_on_after_the_broker_and_then_the_server_were_killed(tmp_path: Path):
    async with a_village(tmp_path) as (village, fleet):
        bulletin = await village.bulletin("Thông báo", sample("announcement_a").path)
        start = in_seconds(16)
        await village.schedule(feed_id=village.feeds[PULLED], starts_at=start, length_s=50)
        announced = start + timedelta(seconds=52)
        await village.schedule(bulletin_id=bulletin, starts_at=announced)
        await until_at(start + timedelta(seconds=5))
        os.kill(int((tmp_path / "data" / "broker" / "mosquitto.pid").read_text("ascii")), signal.SIGKILL)
        await until_at(start + timedelta(seconds=22))
        assert village.server is not None
        village.server.send_signal(signal.SIGKILL)
        await village.server.wait()
        await village.start_server()
        back = datetime.now(UTC)
        await until_at(announced + timedelta(seconds=2))
        village.server.send_signal(signal.SIGKILL)
        await village.server.wait()
        await until_at(announced + timedelta(seconds=9))
        await fleet.terminate()
    recordings = read_recordings(tmp_path / "recordings")
    assert len(recordings) == NODES
    for recording in recordings:
        seconds = timedelta(seconds=1)
        before = sounded_s(recording, "station_pull", start, start + 5 * seconds)
        assert before > 4.8, "nothing was wrong yet"
        assert sounded_s(recording, "station_pull", start + 15 * seconds, start + 22 * seconds) > 6.5, (
            "ten seconds after the broker died it sounds again without a hole"
        )
        rest = (start + 50 * seconds - (back + 9 * seconds)).total_seconds()
        assert rest > 5
        assert sounded_s(recording, "station_pull", back + 9 * seconds, start + 50 * seconds) > rest - 0.5, (
            "and soon after the server came back"
        )
        assert sounded_s(recording, "station_pull", start + 51 * seconds, announced + 9 * seconds) == 0
        assert abs(first_sound(recording, "announcement_a", announced)) < 0.05
        assert sounded_s(recording, "announcement_a", announced, announced + 9 * seconds) > 7.5, (
            "what the nodes hold sounds to its end without a server"
        )


async def test_a_programme_is_heard_cue_by_cue_and_a_restored_backup_is_obeyed(tmp_path: Path):
    async with a_village(tmp_path) as (village, fleet):
        parts = ("programme_item_1", "programme_item_2", "programme_item_3")
        items = [{"role": "signature", "asset_sha256": await an_asset(village, "signature_tune")}]
        items += [{"bulletin_id": await village.bulletin(name, sample(name).path)} for name in parts]
        programme = await village.ask("POST", "/programmes", unit_id=COMMUNE, title="Buổi sáng", items=items)
        path = f"/programmes/{programme['id']}"
        made = await village.ask("POST", f"{path}/rendering")
        await village.ask("POST", f"{path}/submission", content_hash=made["content_hash"])
        await village.approve_all()
        rendered = await village.ask("GET", f"/assets/{made['asset_sha256']}/report")
        start = in_seconds(8)
        await village.schedule(programme_id=programme["id"], starts_at=start)
        kept = tmp_path / "backup.tar"
        await village.command("backup", str(kept))
        ends = start + timedelta(milliseconds=rendered["duration_ms"])
        await until_at(ends + timedelta(seconds=1))

        # A later day than the backup knows of: nodes obey newer numbers than the restored server will have.
        bulletin = await village.bulletin("Sau bản lưu", sample("announcement_b").path)
        await village.schedule(bulletin_id=bulletin, starts_at=in_seconds(3_600))
        await village.until_ready(NODES, fleet)
        await village.stop_server()
        await village.command("restore", str(kept), "--force")
        village.settings = {**village.settings, "LOA_RESERVE_BYTES": str(10**15)}
        await village.start_server()
        restored = datetime.now(UTC)
        again = await village.ask("GET", f"/bulletins/{items[1]['bulletin_id']}")
        with pytest.raises(VillageError, match="disk_full"):
            await village.upload(again["id"], sample("announcement_c").path)
        repeat = in_seconds(15)
        await village.schedule(bulletin_id=again["id"], starts_at=repeat)
        await village.until_ready(NODES, fleet, timeout_s=60)
        assert datetime.now(UTC) - restored < timedelta(seconds=60), "all nodes obey the restored server"
        await until_at(repeat + timedelta(seconds=8))
        await fleet.terminate()
    cues = {cue["item_id"]: cue for cue in rendered["cues"] if cue["role"] == "item"}
    assert len(cues) == len(parts)
    for recording in read_recordings(tmp_path / "recordings"):
        for cue, name in zip(sorted(cues.values(), key=lambda each: each["at_ms"]), parts, strict=True):
            at = start + timedelta(milliseconds=cue["at_ms"])
            assert abs(first_sound(recording, name, at)) < 0.1, f"{name} at its second"
        assert abs(first_sound(recording, parts[0], repeat)) < 0.1, "scheduled sound goes on although the disk is full"


async def an_asset(village: Village, name: str) -> str:
    """A sound of the library by its hash."""
    bulletin = await village.ask("GET", f"/bulletins/{await village.bulletin(name, sample(name).path)}")
    sha256: str = bulletin["versions"][0]["asset_sha256"]
    return sha256
