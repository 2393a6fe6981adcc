"""The ear names every pair, through the codec, and finds its first sample."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from firmware_sim.decoder import SAMPLE_RATE_HZ, StreamDecoder
from firmware_sim.ear import TONES_HZ, heard, level_dbfs
from tests.firmware_sim.tones import packets, sequence, tone

PAIRS = list(itertools.combinations(TONES_HZ, 2))


def through_opus(pcm: np.ndarray, kbps: int) -> np.ndarray:
    decoder = StreamDecoder()
    out = np.concatenate([decoder.decode(packet) for packet in packets(pcm, kbps=kbps)])
    return out[312:]  # the encoder's look-ahead


@pytest.mark.parametrize("kbps", [16, 24])
def test_all_28_pairs_are_told_apart_after_opus(kbps: int):
    pcm = through_opus(sequence([part for pair in PAIRS for part in ((None, 0.3), (pair, 0.7))]), kbps)
    found = heard(pcm)
    assert [one.pair for one in found] == PAIRS
    onsets = [one.start_ns / 1e6 - (i * 1000 + 300) for i, one in enumerate(found)]
    assert max(map(abs, onsets)) < 2.0
    assert np.ptp(onsets) < 3.0


def test_clean_onsets_are_exact_wherever_they_lie():
    for shift in (0, 1, 777, 1_199, 2_399):
        pcm = np.concatenate([np.zeros(24_000 + shift, np.int16), tone((700, 1600), 1.0), np.zeros(9_600, np.int16)])
        (one,) = heard(pcm, 10**18)
        assert abs(one.start_ns - 10**18 - (24_000 + shift) / 48e-6) < 300_000
        assert abs(one.end_ns - 10**18 - (72_000 + shift) / 48e-6) < 300_000
        assert abs(one.level_dbfs - level_dbfs(tone((700, 1600), 1.0))) < 0.1


def test_one_programme_cut_into_another_has_its_seam_found():
    pcm = sequence([((500, 1900), 1.0), ((900, 1300), 1.0), ((500, 1900), 1.0)])
    assert [one.pair for one in heard(pcm)] == [(500, 1900), (900, 1300), (500, 1900)]
    assert [abs(one.start_ns / 1e9 - i) < 0.001 for i, one in enumerate(heard(pcm))] == [True] * 3


def test_silence_noise_and_a_single_tone_are_nobody():
    noise = np.random.default_rng(1).normal(0, 4_000, SAMPLE_RATE_HZ).astype(np.int16)
    lone = (8_000 * np.sin(2 * np.pi * 700 * np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)).astype(np.int16)
    assert heard(np.zeros(SAMPLE_RATE_HZ, np.int16)) == []
    assert heard(noise) == []
    assert heard(lone) == []
    assert heard(np.zeros(10, np.int16)) == []
    assert level_dbfs(np.zeros(960, np.int16)) == -120.0
