"""The meter agrees with another one; the limiter never lets a true peak through and never clicks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broadcast_server.audio.formats import SAMPLE_RATE_HZ, Pcm, to_float, to_pcm
from broadcast_server.audio.loudness import BLOCK_SAMPLES, Meter, levelled
from simulation.samples import tone_pcm
from tests.audio.test_prepare import loudness


def blocks_of(pcm: Pcm, size: int = BLOCK_SAMPLES) -> list[Pcm]:
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


def bursts(seconds: float, seed: int = 3) -> Pcm:
    """Noise with sudden peaks: the worst a microphone does."""
    chance = np.random.default_rng(seed)
    count = round(seconds * SAMPLE_RATE_HZ)
    envelope = np.repeat(chance.choice([0.02, 0.1, 0.9], size=count // 2400 + 1), 2400)[:count]
    noise = np.convolve(chance.uniform(-1, 1, count + 2), (0.25, 0.5, 0.25), "valid")  # no microphone hears 24 kHz
    return to_pcm((noise * envelope * 1.5).astype(np.float32))


def test_the_meter_agrees_with_ffmpeg_within_a_tenth():
    pcm = bursts(20.0)
    meter = Meter()
    for block in blocks_of(pcm, 7_919):
        meter.hear(block)
    told = meter.report().integrated_lufs
    assert told is not None
    assert abs(told - loudness(pcm.tobytes())[0]) <= 0.1


@pytest.mark.parametrize("gain_db", [0.0, 6.0, 20.0])
def test_no_true_peak_passes_the_ceiling(gain_db: float):
    out = np.concatenate(list(levelled(blocks_of(bursts(6.0)), gain_db=gain_db)))
    assert loudness(out.tobytes())[1] <= -1.4


def test_a_peak_between_two_samples_is_seen():
    at = np.arange(SAMPLE_RATE_HZ * 2)
    swell = np.minimum(1.0, np.minimum(at, at[::-1]) / 4_800)
    between = to_pcm(
        (0.99 * swell * np.sin(np.pi / 2 * at + np.pi / 4)).astype(np.float32)
    )  # samples 0.7, true peak 0.99
    out = np.concatenate(list(levelled(blocks_of(between), gain_db=0.0)))
    assert loudness(out.tobytes())[1] <= -1.4


def test_what_is_under_the_ceiling_is_left_alone():
    pcm = np.frombuffer(tone_pcm((500, 700), 3.3), "<i2")
    assert np.array_equal(np.concatenate(list(levelled(blocks_of(pcm), gain_db=0.0))), pcm)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200_000), st.floats(-20, 24), st.integers(0, 9))
def test_as_many_samples_come_out_as_went_in(count: int, gain_db: float, seed: int):
    pcm = bursts(5.0, seed)[:count]
    out = np.concatenate(list(levelled(blocks_of(pcm), gain_db=gain_db)))
    assert len(out) == len(pcm)
    assert np.abs(to_float(out)).max() <= 0.8415


def test_the_gain_moves_without_a_step():
    steady = np.full(SAMPLE_RATE_HZ * 2, 3_000, np.int16)
    steady[60_000] = 32_000
    out = np.concatenate(list(levelled(blocks_of(steady), gain_db=6.0))).astype(np.int32)
    quiet = np.delete(out, 60_000)
    assert np.abs(np.diff(quiet)).max() < 60


def test_short_of_a_measure_a_sound_is_kept_as_it_is():
    meter = Meter()
    meter.hear(np.frombuffer(tone_pcm((500, 700), 0.2), "<i2"))
    report = meter.report()
    assert report.integrated_lufs is None
    assert report.gain_db == 0.0
    assert not report.is_silent
