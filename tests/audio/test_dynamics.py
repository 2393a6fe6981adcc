"""A live voice is brought to one level as it comes, and nothing passes the ceiling."""

from __future__ import annotations

import numpy as np
import pytest

from broadcast_server.audio.dynamics import STEP_SAMPLES, Curve, Dynamics
from broadcast_server.audio.formats import FRAME_SAMPLES, Pcm, dbfs, gain_of_db, to_float

RATE_HZ = 48_000


def voice(level_dbfs: float, seconds: float, hz: float = 400.0) -> Pcm:
    at_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return np.rint(32_767 * gain_of_db(level_dbfs) * np.sin(2 * np.pi * hz * at_s)).astype("<i2")


def peak_dbfs(pcm: Pcm) -> float:
    return dbfs(float(np.abs(to_float(pcm)).max()))


def rms_dbfs(pcm: Pcm) -> float:
    return dbfs(float(np.sqrt(np.square(to_float(pcm), dtype=np.float64).mean())))


def blocks(pcm: Pcm, samples: int) -> list[Pcm]:
    return [pcm[at : at + samples] for at in range(0, len(pcm), samples)]


def test_who_whispers_and_who_shouts_come_nearer_to_each_other():
    whisper, shout = voice(-34.0, 2.0), voice(-4.0, 2.0)
    quiet = Dynamics().hear(whisper)[RATE_HZ:]
    loud = Dynamics().hear(shout)[RATE_HZ:]

    assert rms_dbfs(loud) - rms_dbfs(quiet) < 22.0  # it was 30
    assert rms_dbfs(quiet) == pytest.approx(rms_dbfs(whisper) + 4.0, abs=0.2)


@pytest.mark.parametrize("level_dbfs", [0.0, -1.0, -6.0])
def test_no_sample_passes_the_ceiling_not_even_the_first_of_a_shout(level_dbfs: float):
    dynamics = Dynamics()
    story = np.concatenate([voice(-60.0, 0.31), voice(level_dbfs, 0.4), voice(-50.0, 0.2), voice(level_dbfs, 0.3)])

    heard = np.concatenate([dynamics.hear(block) for block in blocks(story, FRAME_SAMPLES)])

    assert peak_dbfs(heard) <= Curve().ceiling_dbfs + 0.01


def test_nothing_is_delayed_and_nothing_is_added():
    dynamics = Dynamics()
    click = np.zeros(FRAME_SAMPLES, "<i2")
    click[123] = 3_000

    assert np.flatnonzero(dynamics.hear(click)).tolist() == [123]
    assert not dynamics.hear(np.zeros(FRAME_SAMPLES, "<i2")).any()
    assert len(dynamics.hear(np.zeros(0, "<i2"))) == 0
    assert len(dynamics.hear(np.zeros(777, "<i2"))) == 777


def test_the_compressor_gives_the_same_sound_however_the_stream_is_cut():
    story = np.concatenate([voice(-40.0, 0.3), voice(-14.0, 0.5), voice(-30.0, 0.4)])
    whole, parts = Dynamics().hear(story), Dynamics()

    cut = np.concatenate([parts.hear(block) for block in blocks(story, 7 * STEP_SAMPLES)])

    assert np.abs(whole.astype(int) - cut.astype(int)).max() <= 1
