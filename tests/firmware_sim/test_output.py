"""What is recorded is what sounded, on the true clock, whatever the node believed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from firmware_sim.clock import DeviceClock
from firmware_sim.ear import heard
from firmware_sim.output import Dac, Horn, Played, Recorder, join
from firmware_sim.player import Chunk, Sounding, Tag
from speaker_protocol.rules import Why
from tests.firmware_sim.tones import read_wav, tone
from tests.firmware_sim.world import START_NS, HandTime

TAG = Tag("p", 0, 60_000)


class Bench:
    """A sound card on the bench."""

    def __init__(self, folder: Path, drift_ppm: float = 0.0, offset_ms: float = 0.0) -> None:
        self.true = HandTime()
        self.folder = folder
        self.horn = Horn()
        self.recorder = Recorder(folder, "n1", "c1", self.true.now_ns())
        self.played: list[Played] = []
        clock = DeviceClock(self.true, offset_ms=offset_ms, drift_ppm=drift_ppm)
        self.dac = Dac(clock, self.true, self.horn, self.recorder, self.played.append)

    def sound(self, pcm: np.ndarray, tag: Tag = TAG) -> None:
        self.dac.queue(Chunk(len(pcm), 0, Sounding.SOUND, Why.PLANNED, tag, pcm))

    def recording(self) -> np.ndarray:
        self.recorder.close(self.true.now_ns())
        return read_wav(self.folder / "n1.wav")


@pytest.mark.parametrize("drift_ppm", [-50.0, 0.0, 50.0])
def test_the_recording_is_on_true_time_though_the_card_is_not(tmp_path: Path, drift_ppm: float):
    bench = Bench(tmp_path, drift_ppm, offset_ms=400)
    bench.dac.queue(Chunk(20 * 48_000, 0, Sounding.SILENCE, Why.NOTHING_PLANNED))
    for second in range(10):
        bench.sound(tone((700, 1600), 10)[second * 48_000 : (second + 1) * 48_000].copy())
    for _ in range(310):
        bench.true.pass_s(0.1)
        bench.dac.run()
    (one,) = heard(bench.recording(), START_NS)
    # The card's 20 x 48 000 samples last 20 s of its crystal, not of the world.
    assert abs((one.start_ns - START_NS) / 1e6 - 20_000 / (1 + drift_ppm * 1e-6)) < 0.2
    assert abs((one.end_ns - START_NS) / 1e6 - 30_000 / (1 + drift_ppm * 1e-6)) < 0.2
    told = json.loads((tmp_path / "n1.json").read_text())
    assert (told["node_id"], told["cluster_id"], told["sample0_utc_ns"]) == ("n1", "c1", START_NS)


def test_the_seams_between_blocks_cannot_be_seen(tmp_path: Path):
    bench = Bench(tmp_path, 50.0)
    whole = tone((500, 700), 4)
    for at in range(0, len(whole), 9_600):
        bench.sound(whole[at : at + 9_600].copy())
    for _ in range(45):
        bench.true.pass_s(0.1)
        bench.dac.run()
    got = bench.recording()[: 47_000 * 4].astype(float)
    steepest = np.abs(np.diff(whole.astype(float))).max()
    assert np.abs(np.diff(got)).max() <= steepest * 1.01


def test_a_dry_buffer_is_an_underrun_silent_and_counted_once(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.sound(tone((700, 1600), 1))
    bench.true.pass_s(1.5)
    bench.dac.run()
    bench.true.pass_s(0.5)
    bench.dac.run()
    bench.sound(tone((700, 1600), 1))
    bench.true.pass_s(1.2)
    bench.dac.run()
    assert bench.dac.underruns == 2
    assert [piece.is_underrun for piece in bench.played] == [False, True, False, True]
    starts = [round((one.start_ns - START_NS) / 1e9, 2) for one in heard(bench.recording(), START_NS)]
    assert starts == [0.0, 2.0]


def test_a_dead_horn_sounds_nothing_and_the_node_does_not_claim_otherwise(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.horn.is_dead = True
    bench.sound(tone((700, 1600), 1))
    bench.true.pass_s(1)
    bench.dac.run()
    assert [piece.is_heard for piece in bench.played] == [False]
    assert not bench.recording().any()


def test_a_changed_plan_takes_back_what_has_not_sounded_without_a_click(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.sound(tone((700, 1600), 2))
    bench.true.pass_s(0.5)
    bench.dac.run()
    assert bench.dac.rewind(0.1)
    assert not bench.dac.rewind(0.1)
    after = Chunk(48_000, 0, Sounding.SOUND, Why.PLANNED, Tag("q", 0, 9), tone((500, 900), 1))
    join(bench.dac.last_queued(), after)
    bench.dac.queue(after)
    bench.true.pass_s(2)
    bench.dac.run()
    first, second = heard(bench.recording(), START_NS)
    assert (first.pair, second.pair) == ((700, 1600), (500, 900))
    assert abs((first.end_ns - START_NS) / 1e6 - 600) < 6
    assert abs((second.start_ns - START_NS) / 1e6 - 600) < 6


def test_power_that_goes_in_the_middle_of_a_block_ends_the_recording_there(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.sound(tone((700, 1600), 2))
    bench.true.pass_s(0.75)
    bench.dac.run(is_last=True)
    (one,) = heard(bench.recording(), START_NS)
    assert abs((one.end_ns - START_NS) / 1e6 - 750) < 2
