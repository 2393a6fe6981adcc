"""Stories of real nodes: real mosquitto, real HTTP, real Opus, judged by what the recording holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_sim.ear import Heard, heard
from firmware_sim.node import SpeakerNode
from speaker_protocol import messages as wire
from speaker_protocol import topics
from speaker_protocol.messages import ReportKind
from speaker_protocol.rules import SourceKind
from tests.firmware_sim.station import PATH, Relay, Signer, Station, now_ms, segment
from tests.firmware_sim.tones import ogg_opus, packets, read_wav, tone
from tests.firmware_sim.world import Village, needs_mosquitto
from tests.support.until import until

pytestmark = [needs_mosquitto, pytest.mark.e2e]


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    with Station(tmp_path) as station:
        yield station


def bulletin(station: Station, pair: tuple[int, int], seconds: float = 2.0) -> str:
    return station.add_asset(ogg_opus(tone(pair, seconds)), round(seconds * 1000))


async def recording(village: Village, node: SpeakerNode, t0_ms: int) -> list[tuple[tuple[int, int], float, float]]:
    """(pair, start, end) of everything the node sounded, seconds since `t0_ms`."""
    await village.switch_off(node.node_id)
    recorder = node.box.recorder
    assert recorder is not None
    found: list[Heard] = heard(read_wav(village.folder / "rec" / f"{node.node_id}.wav"), recorder.sample0_utc_ns)
    return [(one.pair, one.start_ns / 1e9 - t0_ms / 1000, one.end_ns / 1e9 - t0_ms / 1000) for one in found]


async def is_past(at_ms: float) -> None:
    await until(lambda: now_ms() >= at_ms, 30)


async def test_two_poles_with_wrong_clocks_sound_the_bulletin_together_at_its_second(station: Station, tmp_path: Path):
    sha = bulletin(station, (700, 1600))
    async with Village(station, tmp_path) as village:
        pair = [village.node(seed=1, offset_ms=-480, drift_ppm=50), village.node(seed=2, offset_ms=490, drift_ppm=-50)]
        await until(lambda: all(node.firmware and node.state.clock.exchanges >= 4 for node in pair))
        t0 = now_ms() + 1_500
        for node in pair:
            station.plan(node.node_id, [segment("bulletin", t0, 2.0, asset=sha)])
        await until(lambda: sum(r.kind is ReportKind.FINISHED for _, r in station.reports) == 2)
        await until(lambda: all(node.state.reports_waiting == 0 for node in pair))
        for _, report in station.reports:
            assert report.entry_id == "bulletin"
            if report.kind is ReportKind.FINISHED:
                assert abs(report.heard_ms - 2_000) <= 40
                assert report.reason is None
        starts = []
        for node in pair:
            (one,) = await recording(village, node, t0)
            assert one[0] == (700, 1600)
            assert abs(one[2] - one[1] - 2.0) < 0.02
            starts.append(one[1])
        assert max(map(abs, starts)) < 0.05
        assert abs(starts[0] - starts[1]) < 0.01


async def test_garbage_forgeries_and_other_peoples_plans_leave_it_silent_and_counted(station: Station, tmp_path: Path):
    sha = bulletin(station, (500, 900))
    async with Village(station, tmp_path) as village:
        node = village.node()
        name = node.node_id
        own = topics.NodePlan(name)
        await until(lambda: node.firmware is not None and node.state.clock.exchanges >= 4)
        station.commune.epoch = 7
        station.plan(name, [])
        await until(lambda: node.state.plan is not None)
        t0 = now_ms()
        evil = [segment("evil", t0, 600.0, asset=sha)]
        station.commune.epoch = 6
        for payload in (
            b"",
            b"\x00" * 500,
            station.plan_payload(name, evil, signer=Signer()),
            station.plan_payload("node-9999", evil),
            station.plan_payload(name, evil),  # the epoch of a deposed leader
            station.plan_payload(name, evil, epoch=8, expires_ms=now_ms() - 1),
        ):
            seen = sum(node.state.refusals.values())
            station.send(own, payload, retain=False)
            await until(lambda seen=seen: sum(node.state.refusals.values()) > seen)  # type: ignore[misc]
        assert node.state.refusals == {
            "garbage": 2,
            "unknown_key": 1,
            "wrong_target": 1,
            "older": 1,
            "expired": 1,
        }
        node.firmware._say_status()
        await until(lambda: station.statuses[name].refusals.get("older") == 1)
        assert station.statuses[name].highest[0] == 7
        assert await recording(village, node, t0) == []
    assert station.reports == []


async def test_a_download_that_breaks_is_resumed_and_a_wrong_one_never_sounds(station: Station, tmp_path: Path):
    good = bulletin(station, (700, 1600), 20.0)
    wrong = bulletin(station, (500, 900))
    station.assets[wrong] = station.assets[wrong][:-1] + b"!"
    station.cut_downloads_after = 30_000
    async with Village(station, tmp_path) as village:
        node = village.node()
        await until(lambda: node.firmware is not None and node.state.clock.exchanges >= 4)
        t0 = now_ms() + 500
        station.plan(
            node.node_id, [segment("good", t0 + 1_500, 2.0, asset=good), segment("wrong", t0 + 3_600, 1.0, asset=wrong)]
        )
        await until(lambda: node.firmware is not None and node.firmware.assets.counts.resumed == 1)
        await until(lambda: good in node.state.ready_assets)
        await until(lambda: any(r.kind is ReportKind.NOT_SOUNDED for _, r in station.reports))
        assert ("bytes=30000-") in {wanted for sha, wanted in station.requests if sha == good}
        assert node.firmware is not None
        assert node.firmware.assets.counts.wrong_hash >= 1
        assert wrong in node.state.missing_assets
        told = {(r.kind.value, r.entry_id, r.reason) for _, r in station.reports}
        assert ("not_sounded", "wrong", "asset_missing") in told
        found = await recording(village, node, t0)
        assert {pair for pair, _, _ in found} == {(700, 1600)}


async def test_after_a_power_dip_without_network_it_goes_on_at_the_wall_clocks_second(station: Station, tmp_path: Path):
    sha = station.add_asset(ogg_opus(tone((700, 1600), 20.0)), 20_000)
    async with Village(station, tmp_path) as village:
        node = village.node(offset_ms=200)
        await until(lambda: node.firmware is not None and node.state.clock.exchanges >= 8)
        t0 = now_ms() + 1_000
        station.plan(node.node_id, [segment("long", t0, 18.0, asset=sha)])
        await until(lambda: sha in node.state.ready_assets)
        assert node.firmware is not None
        node.firmware._memory.clock = node.firmware.clock.remember(node.box.clock.now_ns())
        await node.firmware._save()
        await is_past(t0 + 1_500)
        boot = node.state.boot_id
        station.stop_broker()
        node.faults.reboot()
        await until(lambda: node.state.boot_id != boot and node.state.sounding is not None)
        await until(lambda: node.state.reports_waiting >= 1, 10)
        station.start_broker()
        station.publish_keys()
        await until(lambda: node.state.reports_waiting == 0, 15)
        assert len({report.boot_id for _, report in station.reports}) == 2
        assert sorted({report.line for _, report in station.reports}) == [1, 2]
        found = await recording(village, node, t0)
        assert abs(found[0][1]) < 0.05
        assert found[0][2] < 2.0
        assert found[1][1] < 3.0


async def test_a_live_voice_whose_batches_come_half_a_second_before_they_are_due_is_heard_whole(
    station: Station, tmp_path: Path
):
    async with Village(station, tmp_path) as village:
        node = village.node()
        await until(lambda: node.firmware is not None and node.state.clock.exchanges >= 4)
        with Relay(station, "noi", packets(tone((900, 2300), 9.0)), per_batch=20, delay_ms=900) as voice:
            start = voice.body.t0_utc_ms + 3_000
            station.plan(node.node_id, [segment("live", start, 5.0, stream="noi", source=SourceKind.LIVE)])
            await until(lambda: any(r.kind is ReportKind.FINISHED for _, r in station.reports), 20)
        told = next(r for _, r in station.reports if r.kind is ReportKind.FINISHED)

        assert (told.source, told.underruns) == (SourceKind.LIVE, 0)
        assert told.heard_ms >= 4_950


async def test_a_relay_with_a_lost_batch_is_partial_and_ends_when_its_lease_does(station: Station, tmp_path: Path):
    async with Village(station, tmp_path) as village:
        node = village.node()
        blind = village.node(seed=3, has_output=False)
        both = (node, blind)
        await until(lambda: all(n.firmware is not None and n.state.clock.exchanges >= 4 for n in both))
        live = packets(tone((900, 2300), 14.0))
        with Relay(station, "voh", live, per_batch=20, delay_ms=1_200, lease_ms=3_000, lose=[10]) as relay:
            start = relay.body.t0_utc_ms + 2_500
            for n in both:
                station.plan(n.node_id, [segment("relay", start, 8.0, stream="voh")])
            await is_past(start + 4_000)
            relay.renews = False
            dead = now_ms() + 3_200
            await until(
                lambda: sum(r.kind in {ReportKind.FINISHED, ReportKind.NOT_SOUNDED} for _, r in station.reports) == 2
            )
        told = {name: r for name, r in station.reports if r.kind is not ReportKind.STARTED}
        lost_ms = relay.due_ms(10 * 20 * 960) - start
        assert 0 < lost_ms < 8_000
        assert told[node.node_id].reason in {"hole", "stream_dead"}
        assert told[node.node_id].heard_ms < 8_000 - 480
        assert told[blind.node_id].kind is ReportKind.NOT_SOUNDED
        assert (told[blind.node_id].heard_ms, told[blind.node_id].reason) == (0, "no_output")
        found = await recording(village, node, start)
        assert {pair for pair, _, _ in found} == {(900, 2300)}
        assert abs(found[0][1]) < 0.05
        assert abs(found[0][2] - lost_ms / 1000) < 0.05
        assert abs(found[1][1] - lost_ms / 1000 - 0.48) < 0.05
        assert found[-1][2] < (dead - start) / 1000 + 0.3


async def test_stop_all_silences_within_half_a_second_and_its_release_rejoins(station: Station, tmp_path: Path):
    sha = bulletin(station, (700, 1600), 10.0)
    async with Village(station, tmp_path) as village:
        node = village.node()
        await until(lambda: node.firmware is not None and node.state.clock.exchanges >= 4)
        t0 = now_ms() + 800
        station.plan(node.node_id, [segment("p", t0, 10.0, asset=sha)])
        await is_past(t0 + 1_500)
        stopped = now_ms()
        station.alerts(PATH[0], stop_all=True)
        await is_past(stopped + 1_500)
        released = now_ms()
        station.alerts(PATH[0])
        await is_past(released + 1_500)
        found = await recording(village, node, t0)
        assert [pair for pair, _, _ in found] == [(700, 1600), (700, 1600)]
        assert found[0][2] < (stopped - t0) / 1000 + 0.5
        assert found[1][1] < (released - t0) / 1000 + 0.5


async def test_reports_outlive_a_server_that_does_not_answer(station: Station, tmp_path: Path):
    sha = bulletin(station, (700, 1600), 1.0)
    station.acknowledges = False
    async with Village(station, tmp_path) as village:
        node = village.node()
        await until(lambda: node.firmware is not None and node.state.clock.exchanges >= 4)
        station.plan(node.node_id, [segment("p", now_ms() + 600, 1.0, asset=sha)])
        await until(lambda: len(station.reports) >= 3)  # two entries, one of them again
        assert node.state.reports_waiting == 2
        station.acknowledges = True
        node.faults.cut_link(for_s=0.2)
        await until(lambda: node.state.reports_waiting == 0, 15)
        entries = {(report.boot_id, report.sequence) for _, report in station.reports}
        assert len(entries) == 2


async def test_a_technicians_tone_sounds_when_nothing_else_does(station: Station, tmp_path: Path):
    from speaker_protocol.signing import Kind

    async with Village(station, tmp_path) as village:
        node = village.node()
        await until(lambda: node.firmware is not None and node.state.clock.exchanges >= 4)
        order = wire.OrderBody(order_id="o1", verb=wire.OrderVerb.TEST_TONE, seconds=1)
        station.send(topics.NodeOrder(node.node_id), station.commune.seal(Kind.ORDER, node.node_id, order))
        await until(lambda: any(r.kind is ReportKind.ORDER_DONE for _, r in station.reports))
        sounded = now_ms()
        await is_past(sounded + 1_500)
        await village.switch_off(node.node_id)
        pcm = read_wav(tmp_path / "rec" / f"{node.node_id}.wav")
        assert abs(int((abs(pcm.astype(int)) > 100).sum()) - 48_000) < 4_000
