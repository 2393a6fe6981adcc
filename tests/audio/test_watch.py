"""The watch on PCM: what a field technician calls bad is called bad, and what only sounds odd is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from broadcast_server.audio.formats import SAMPLE_RATE_HZ, to_pcm
from broadcast_server.audio.watch import DriftMeter, Fault, Watch
from simulation.samples import tone_pcm

CHANCE = np.random.default_rng(7)


def speechlike(seconds: float, level: float = 0.2) -> np.ndarray:
    """Syllables of a gliding voice with breath between them."""
    at_s = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pitch = 140 + 30 * np.sin(2 * np.pi * 0.37 * at_s) + 9 * np.sin(2 * np.pi * 1.9 * at_s)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 2.7 * at_s) + 0.4, 0, 1)
    breath = CHANCE.normal(0, 0.01, len(at_s))
    return level * voice * syllables + breath


def pcm(sound: np.ndarray) -> bytes:
    return to_pcm(sound.astype(np.float32)).tobytes()


def heard(sound: bytes, *, block: int = 5_000) -> tuple[Fault | None, float | None]:
    """What the watch says at the end, and after how many seconds it first said anything."""
    watch, first = Watch(), None
    for start in range(0, len(sound), block * 2):
        watch.feed(sound[start : start + block * 2])
        if first is None and watch.fault is not None:
            first = (start + block * 2) / 2 / SAMPLE_RATE_HZ
    return watch.fault, first


@pytest.mark.parametrize(
    "sound",
    [
        pytest.param(pcm(speechlike(30)), id="speech"),
        pytest.param(pcm(speechlike(5)) + bytes(9 * 96_000) + pcm(speechlike(1)), id="a pause of nine seconds"),
        pytest.param(tone_pcm((700, 2300), 20.0), id="a test tone"),
        pytest.param(tone_pcm((1000,), 20.0, level=0.9), id="a loud line-up tone"),
        pytest.param(b"".join(tone_pcm((1000,), 0.1) + bytes(86_400) for _ in range(6)), id="time pips"),
    ],
)
def test_what_only_sounds_odd_is_no_fault(sound: bytes):
    assert heard(sound) == (None, None)


@pytest.mark.parametrize("breath", [0.0, 0.0005], ids=["digital", "line noise"])
def test_ten_seconds_below_minus_fifty_are_a_silence(breath: float):
    fault, after_s = heard(pcm(CHANCE.normal(0, breath + 1e-9, 12 * SAMPLE_RATE_HZ)))
    assert fault is Fault.SILENT
    assert after_s is not None
    assert 10.0 <= after_s <= 10.3


@pytest.mark.parametrize("period_s", [0.05, 0.2, 0.7])
def test_a_sound_card_that_repeats_its_buffer_is_stuck_within_its_period_and_two_seconds(period_s: float):
    buffer = speechlike(period_s)
    lead = speechlike(3.0)
    fault, after_s = heard(pcm(np.concatenate((lead, np.tile(buffer, round(4 / period_s))))))
    assert fault is Fault.STUCK
    assert after_s is not None
    assert after_s - 3.0 <= period_s + 2.2


def test_a_stuck_buffer_that_comes_free_is_good_again():
    watch = Watch()
    watch.feed(pcm(np.tile(speechlike(0.3), 12)))
    assert watch.fault is Fault.STUCK
    watch.feed(pcm(speechlike(4.0)))
    assert watch.fault is None


@pytest.mark.parametrize(
    ("sound", "fault"),
    [
        pytest.param(np.clip(speechlike(4, level=8.0) * 3, -1, 1), Fault.OVERLEVEL, id="driven into the stops"),
        pytest.param(np.clip(speechlike(4) * 0.2 + 0.4, -1, 1), Fault.CONSTANT, id="a constant under the voice"),
        pytest.param(CHANCE.uniform(-1, 1, 4 * SAMPLE_RATE_HZ), Fault.NOISE, id="noise at full scale"),
    ],
)
def test_what_hurts_is_named_within_three_and_a_half_seconds(sound: np.ndarray, fault: Fault):
    named, after_s = heard(pcm(sound))
    assert named is fault
    assert after_s is not None
    assert after_s <= 3.5


def test_blocks_of_any_size_are_judged_alike():
    sound = pcm(np.concatenate((speechlike(2), np.tile(speechlike(0.25), 16))))
    assert {heard(sound, block=size)[0] for size in (37, 960, 4_800, 100_000)} == {Fault.STUCK}


@pytest.mark.parametrize("ppm", [-400.0, -50.0, 0.0, 250.0])
def test_drift_is_measured_through_jitter(ppm: float):
    meter, chance = DriftMeter(), np.random.default_rng(3)
    for block in range(3_000):
        due_s = block * 0.1 / (1 + ppm / 1e6)
        meter.feed(4_800, 100.0 + due_s + float(chance.exponential(0.03)))
    assert meter.ppm == pytest.approx(ppm, abs=30.0)


def test_drift_is_not_told_before_a_minute():
    meter = DriftMeter()
    for block in range(500):
        meter.feed(4_800, block * 0.1)
    assert meter.ppm is None
