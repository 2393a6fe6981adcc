"""Emergencies on a real node: power cuts, a network that is away, a clock that is unknown, a hand that stops it all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firmware_sim.ear import level_dbfs
from firmware_sim.phrases import FOLDER, PhraseBook
from simulation.world.time import VirtualTime
from speaker_protocol import messages as wire
from speaker_protocol import topics
from speaker_protocol.messages import AudioState, ReportKind
from speaker_protocol.rounds import score
from speaker_protocol.signing import Kind
from tests.firmware_sim.test_alarm_sound import where
from tests.firmware_sim.workshop import NODE, Office, Workshop, on_virtual_time, segment

UNDER = (500, 900)
RATE = 48_000


def emergency(bench: Workshop, name: str = "flood", **facts: Any) -> wire.AlertBody:
    """Issued now, in words that every node has: a tone of 4 s, then twice 4.7 s with a second between."""
    told: dict[str, Any] = {
        "alert_id": name,
        "level": 85,
        "issued_ms": bench.now_ms,
        "expires_ms": bench.now_ms + 3_600_000,
        "hazard": "flood",
        "phrases": ("go_to_high_ground",),
        "tone_ms": 4_000,
        "times": 2,
        "gap_ms": 1_000,
    }
    return wire.AlertBody.model_validate({**told, **facts})


ROUND_S = 4.0 + 2 * 4.7 + 1.0


async def a_programme(bench: Workshop, seconds: float = 300.0, **facts: Any) -> int:
    """A programme of known tones is on the air; when it began."""
    office = bench.office
    office.keys()
    office.config(**facts)
    sha = office.asset(UNDER, seconds)
    await bench.settle()
    start_ms = bench.now_ms + 3_000
    office.plan(segment("p", start_ms, seconds, asset=sha))
    await bench.pass_s(13)
    return start_ms


def pcm_of(bench: Workshop, since_ms: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    assert bench.recorder is not None
    raw = bench.recording.read_bytes()[44:]
    pcm = np.frombuffer(raw[: len(raw) // 2 * 2], "<i2").astype(np.int16)
    return pcm[round((since_ms - bench.recorder.sample0_utc_ns / 1e6) * 48) :]


def spans(found: list[tuple[tuple[int, int], float, float]]) -> list[tuple[float, float]]:
    return [(start, end) for pair, start, end in found if pair == UNDER]


def rounds_told(office: Office, kind: ReportKind = ReportKind.FINISHED, name: str = "flood") -> list[wire.ReportBody]:
    told = [one for one in office.told() if one.entry_id == f"alert:{name}" and one.kind is kind]
    return sorted(told, key=lambda one: one.at_ms)


def test_it_cuts_in_holds_the_air_to_the_end_of_the_round_and_every_round_is_proven(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        await a_programme(bench)
        raised_ms = bench.now_ms
        alert = emergency(bench, every_min=1)
        bench.office.alert(alert)
        await bench.pass_s(3)
        bench.node.firmware._say_status()  # type: ignore[union-attr]
        await bench.pass_s(0.1)
        status = bench.office.status
        assert status is not None
        assert status.audio is AudioState.EMERGENCY
        assert (status.alerts, status.stop_all) == (
            (wire.AlertProgress(alert_id="flood", first_ms=status.alerts[0].first_ms, is_sounding=True),),  # type: ignore[index]
            False,
        )
        await bench.pass_s(75)
        assert bench.office.status is not None
        assert bench.office.status.alerts is not None
        assert bench.office.status.alerts[0].rounds == 2
        finished = rounds_told(bench.office)
        assert [one.segment_start_ms - raised_ms for one in finished] == [0, 60_000]
        for one in finished:
            assert abs(one.heard_ms - score(alert).length_ms) < 250
            assert one.reason is None
        assert len(rounds_told(bench.office, ReportKind.STARTED)) == 2
        found = spans(await bench.sounded(raised_ms))
        cut_s = found[0][1]
        assert cut_s < 0.5
        assert [(round(a, 1), round(b, 1)) for a, b in found[1:2]] == [(14.4, 60.0)]
        pcm = pcm_of(bench, raised_ms)
        assert [round(at, 1) for at in where(pcm, "attention")] == [4.0, 9.7, 64.0, 69.7]

    on_virtual_time(story)


def test_a_recording_that_comes_during_the_tone_is_what_sounds(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        await a_programme(bench)
        sha = bench.office.asset((700, 1600), 6.0)
        raised_ms = bench.now_ms
        bench.office.alert(emergency(bench, asset=sha, asset_ms=6_000))
        await bench.pass_s(25)
        told = rounds_told(bench.office)
        assert [(one.asset, one.reason) for one in told] == [(sha, None)]
        found = await bench.sounded(raised_ms)
        messages = [(round(start, 1), round(end, 1)) for pair, start, end in found if pair == (700, 1600)]
        assert messages == [(4.0, 10.0), (11.0, 17.0)]

    on_virtual_time(story)


def test_a_cancelled_one_is_silent_within_half_a_second_and_the_programme_is_back(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        await a_programme(bench)
        bench.office.alert(emergency(bench))
        await bench.pass_s(6)
        cancelled_ms = bench.now_ms
        bench.office.alert()
        await bench.pass_s(5)
        assert [one.reason for one in rounds_told(bench.office)] == ["cut"]
        found = spans(await bench.sounded(cancelled_ms))
        assert found[-1][0] < 0.5

    on_virtual_time(story)


def test_a_brown_out_in_the_middle_loses_nothing_and_repeats_nothing(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        await a_programme(bench)
        raised_ms = bench.now_ms
        bench.office.alert(emergency(bench))
        await bench.pass_s(6)
        bench.node.power_cycle()  # in the first repetition: the second is heard whole, in step
        await bench.pass_s(14)
        bench.office.alert(emergency(bench, "fire", hazard="fire"))
        fire_ms = bench.now_ms
        await bench.pass_s(12)  # in the last repetition of the fire: it begins anew
        bench.node.power_cycle()
        await bench.pass_s(25)
        bench.node.power_cycle()  # all is over: nothing is repeated
        await bench.pass_s(10)
        await bench.stop()
        pcm = pcm_of(bench, raised_ms)
        assert round(where(pcm, "flood")[-1], 1) == 4.0 + 4.7 + 1.0 + 1.5
        fire = [at - (fire_ms - raised_ms) / 1000 for at in where(pcm, "fire")]
        assert [round(at, 1) for at in fire[:1]] == [5.5]
        assert len(fire) == 4
        assert 12 + 4 + 1.5 <= fire[2] < 12 + 4 + 1.5 + 2  # anew, from the tone on
        assert len(where(pcm, "attention")) == len(where(pcm, "flood")) + len(fire)

    on_virtual_time(story)


def test_a_stop_all_silences_an_emergency_and_after_its_release_the_round_begins_anew(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        await a_programme(bench)
        flood = emergency(bench)
        bench.office.alert(flood)
        await bench.pass_s(7)
        stopped_ms = bench.now_ms
        bench.office.alert(flood, stop_all=True)
        await bench.pass_s(10)
        assert bench.office.status is not None
        assert bench.office.status.stop_all is True
        assert bench.office.status.alerts is not None
        assert bench.office.status.alerts[0].why == "stop_all"
        released_ms = bench.now_ms
        bench.office.alert(flood)
        await bench.pass_s(20)
        assert [one.reason for one in rounds_told(bench.office)] == ["stop_all", None]
        await bench.stop()
        silent = pcm_of(bench, stopped_ms)[RATE // 2 : (released_ms - stopped_ms) * 48]
        assert not silent.any()
        after = where(pcm_of(bench, released_ms), "flood")
        assert [round(at) for at in after] == [6, 11]

    on_virtual_time(story)


def test_a_node_that_was_away_obeys_the_stop_all_when_it_returns(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        await a_programme(bench)
        bench.office.is_reachable = False
        await bench.pass_s(2)
        bench.office.alert(stop_all=True)
        await bench.pass_s(20)
        returned_ms = bench.now_ms
        bench.office.is_reachable = True
        await bench.pass_s(10)
        bench.node.power_cycle()  # the latch is state: a reboot does not lift it
        await bench.pass_s(10)
        await bench.stop()
        pcm = pcm_of(bench, returned_ms)
        assert level_dbfs(pcm_of(bench, returned_ms - 5_000)[: 4 * RATE]) > -30
        assert not pcm[RATE : 19 * RATE].any()

    on_virtual_time(story)


def test_a_node_that_was_away_hears_the_whole_round_when_it_returns(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        await a_programme(bench)
        bench.office.is_reachable = False
        await bench.pass_s(2)
        bench.office.alert(emergency(bench))
        await bench.pass_s(60)
        returned_ms = bench.now_ms
        bench.office.is_reachable = True
        await bench.pass_s(20)
        (told,) = rounds_told(bench.office)
        assert abs(told.heard_ms - ROUND_S * 1000) < 250
        await bench.stop()
        assert [round(at) for at in where(pcm_of(bench, returned_ms), "attention")] == [4, 10]

    on_virtual_time(story)


def test_a_drill_that_cannot_say_so_is_refused_reported_and_the_fault_named(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        folder = tmp_path / "phrases"
        shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        (folder / "drill.opus").write_bytes(b"OggS")
        bench = Workshop(time, tmp_path)
        bench.node.box.phrases = PhraseBook.read(folder)
        await a_programme(bench)
        raised_ms = bench.now_ms
        bench.office.alert(emergency(bench, drill=True))
        await bench.pass_s(8)
        (refused,) = rounds_told(bench.office, ReportKind.NOT_SOUNDED)
        assert refused.reason == "drill_clip_missing"
        status = bench.office.status
        assert status is not None
        assert status.alerts is not None
        assert [one.why for one in status.alerts] == ["drill_clip_missing"]
        assert {"phrases_broken", "phrase_broken:drill"} <= set(status.health or ())
        found = spans(await bench.sounded(raised_ms))
        assert found[-1][1] - found[-1][0] > 7  # the programme went on

    on_virtual_time(story)


@pytest.mark.parametrize("jump_ms", [-3_600_000, 600_000])
def test_a_clock_that_jumps_in_the_middle_does_not_tear_the_round(tmp_path: Path, jump_ms: int):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        await a_programme(bench)
        raised_ms = bench.now_ms
        bench.office.alert(emergency(bench))
        await bench.pass_s(6)
        bench.node.box.clock.jump(jump_ms)
        await bench.pass_s(40)
        found = spans(await bench.sounded(raised_ms))
        assert [round(at, 1) for at in where(pcm_of(bench, raised_ms), "attention")] == [4.0, 9.7]
        assert not [start for start, _ in found if 0.5 < start < 14.3]

    on_virtual_time(story)


class TimelessOffice(Office):
    """It does not say what time it is."""

    def hears(self, link: Any, topic: str, payload: bytes) -> None:
        if not isinstance(topics.parse(topic), topics.NodeTime):
            super().hears(link, topic, payload)
            return
        asked = wire.decode(wire.TimeQuestionBody, payload)
        if asked.resync:  # what must not be obeyed is told all the same: no clock is needed for that
            link.arrives(str(topics.NodeAck(NODE)), self.seal(self.server, Kind.ACK, NODE, self.floors(asked)))


def test_a_node_that_does_not_know_the_time_sounds_the_emergency_all_the_same(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path, office=TimelessOffice(time))
        bench.office.keys()
        bench.office.config()
        await bench.settle()
        raised_ms = bench.now_ms
        bench.office.alert(emergency(bench))
        await bench.pass_s(30)
        await bench.stop()
        said = where(pcm_of(bench, raised_ms), "attention")
        assert len(said) == 2
        assert said[0] < 4 + 5 + 4  # it waited a little for the time, then sounded

    on_virtual_time(story)


# --- what a node enforces by itself -----------------------------------------------------------------------------------


def test_the_minutes_of_a_day_are_counted_over_a_reboot(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        start_ms = await a_programme(bench, max_day_min=2)
        await bench.pass_s(start_ms / 1000 + 75 - bench.now_ms / 1000)
        bench.node.power_cycle(is_orderly=True)
        await bench.pass_s(100)
        told = [one for one in bench.office.told() if one.entry_id == "p" and one.kind is ReportKind.FINISHED]
        total_s = sum(end - start for start, end in spans(await bench.sounded(start_ms)))
        assert 117 < total_s < 121
        assert told[-1].reason in {"reboot", "day_minutes"}

    on_virtual_time(story)


@pytest.mark.parametrize(("limit_ms", "is_heard"), [(5_000, False), (60_000, True)])
def test_an_item_whose_recording_comes_too_late_is_skipped(tmp_path: Path, limit_ms: int, is_heard: bool):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        office = bench.office
        office.keys()
        office.config()
        sha = office.asset((700, 1600), 60.0)
        content = office.assets.pop(sha)
        office.assets[sha] = content[:-1] + b"!"  # nothing fit to sound until it is mended
        await bench.settle()
        start_ms = bench.now_ms + 2_000
        office.plan(segment("p", start_ms, 60.0, asset=sha, late_at_most_ms=limit_ms))
        await bench.pass_s(12)
        office.assets[sha] = content
        await bench.pass_s(80)
        told = [(one.kind, one.reason) for one in office.told() if one.entry_id == "p"]
        found = await bench.sounded(start_ms)
        assert bool(found) is is_heard
        if not is_heard:
            assert told[0][0] is ReportKind.NOT_SOUNDED

    on_virtual_time(story)


def test_a_changed_set_is_answered_soon_after_it_sounds_so_that_nobody_is_sought_in_vain(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        await a_programme(bench)
        await bench.pass_s(5)
        for alerts in ((emergency(bench),), ()):
            bench.office.alert(*alerts)
            changed_ms = bench.now_ms
            await bench.pass_s(3.0)
            status = bench.office.status
            assert status is not None
            assert status.alerts is not None
            assert [one.alert_id for one in status.alerts] == [one.alert_id for one in alerts]
            assert changed_ms + 1_500 <= status.sent_ms <= changed_ms + 2_800, "the others' tones come first"
        await bench.stop()

    on_virtual_time(story)
