"""What sounded, and when: the ear turns "a message was sent" into "a sound came out".

Test programmes are pairs of tones (28 pairs out of 8). Coarse windows of 50 ms name the pair (Goertzel's sums,
written as one matrix product), then the onset is refined on the envelope of each tone: over a 10 ms box all multiples
of 100 Hz are orthogonal, so whatever sounded before (silence, another pair) does not leak in, and the rising envelope
crosses half its height exactly at the onset. Good to well under 1 ms on clean sound and to about 1 ms through Opus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

SAMPLE_RATE_HZ: Final = 48_000
TONES_HZ: Final = (500, 700, 900, 1100, 1300, 1600, 1900, 2300)

Pcm = npt.NDArray[np.int16]
_Wave = npt.NDArray[np.float64]

WINDOW: Final = 2_400
"""Samples of a coarse window: 50 ms, so that tones 200 Hz apart are well separate."""
_HOP: Final = 1_200
_BOX: Final = 480
_SILENCE_DBFS: Final = -50.0
_PAIR_SHARE: Final = 0.7
"""Share of a window's power that must be in its two strongest tones."""
_TWIN_DB: Final = 12.0
"""The two tones of a pair may differ by this."""
_BRIDGE_WINDOWS: Final = 3
"""So many unclear windows inside one pair do not end it."""
_SHORTEST_WINDOWS: Final = 3


@dataclass(frozen=True, slots=True)
class Heard:
    """One pair of tones, `[start_ns, end_ns)` of true time."""

    pair: tuple[int, int]
    start_ns: int
    end_ns: int
    level_dbfs: float


def level_dbfs(pcm: npt.NDArray[np.int16]) -> float:
    """Root mean square against full scale; -120 for silence."""
    if not len(pcm):
        return -120.0
    wave = pcm.astype(np.float32)
    power = float(np.dot(wave, wave)) / len(wave)
    return dbfs(power)


def dbfs(power: float) -> float:
    """Mean square of 16-bit samples as dBFS (a full-scale sine is -3); never below -120."""
    return max(-120.0, 10.0 * float(np.log10(max(power, 1e-6) / 32768.0**2)))


def heard(pcm: Pcm, sample0_ns: int = 0, tones: Sequence[int] = TONES_HZ) -> list[Heard]:
    """Which pairs of `tones` sound in 48 kHz mono PCM, in order. `sample0_ns`: the instant of its first sample."""
    named = _name_windows(pcm, tones)
    found = []
    for pair, first, last in _runs(named):
        start = _edge(pcm, pair, first * _HOP, rising=True)
        end = _edge(pcm, pair, last * _HOP + WINDOW, rising=False)
        if end <= start:
            continue
        found.append(
            Heard(
                pair=pair,
                start_ns=sample0_ns + round(start * 1e9 / SAMPLE_RATE_HZ),
                end_ns=sample0_ns + round(end * 1e9 / SAMPLE_RATE_HZ),
                level_dbfs=level_dbfs(pcm[round(start) : round(end)]),
            )
        )
    return found


def _name_windows(pcm: Pcm, tones: Sequence[int]) -> list[tuple[int, int] | None]:
    """The pair of each window, None for silence or anything else."""
    count = (len(pcm) - WINDOW) // _HOP + 1
    if count <= 0:
        return []
    shape = np.hanning(WINDOW)
    phase = 2j * np.pi / SAMPLE_RATE_HZ * np.outer(np.arange(WINDOW), np.asarray(tones, dtype=np.float64))
    probes = np.exp(-phase) * shape[:, None]
    gain = shape.sum() / 2
    noise_gain = float((shape * shape).sum())
    named: list[tuple[int, int] | None] = []
    for at in range(0, count, 1_000):
        block = np.lib.stride_tricks.sliding_window_view(pcm, WINDOW)[at * _HOP : (count - 1) * _HOP + 1 : _HOP][:1_000]
        waves = block.astype(np.float64)
        amplitude = np.abs(waves @ probes) / gain
        power = ((waves * shape) ** 2).sum(axis=1) / noise_gain
        for row, total in zip(amplitude, power, strict=True):
            named.append(_name(row, float(total), tones))
    return named


def _name(amplitude: _Wave, power: float, tones: Sequence[int]) -> tuple[int, int] | None:
    if dbfs(power) < _SILENCE_DBFS:
        return None
    second, first = np.argsort(amplitude)[-2:]
    strong, weak = float(amplitude[first]), float(amplitude[second])
    if weak <= 0 or 20 * np.log10(strong / weak) > _TWIN_DB or (strong**2 + weak**2) / 2 < _PAIR_SHARE * power:
        return None
    low, high = sorted((tones[int(first)], tones[int(second)]))
    return low, high


def _runs(named: Sequence[tuple[int, int] | None]) -> list[tuple[tuple[int, int], int, int]]:
    """Stretches of one pair: (pair, first window, last window); short holes bridged, flickers dropped."""
    runs: list[tuple[tuple[int, int], int, int]] = []
    for index, pair in enumerate(named):
        if pair is None:
            continue
        if runs and runs[-1][0] == pair and index - runs[-1][2] <= _BRIDGE_WINDOWS + 1:
            runs[-1] = (pair, runs[-1][1], index)
        else:
            runs.append((pair, index, index))
    return [run for run in runs if run[2] - run[1] + 1 >= _SHORTEST_WINDOWS]


def _edge(pcm: Pcm, pair: tuple[int, int], near: int, *, rising: bool) -> float:
    """The sample where the pair begins (or ends), near a coarse one: the mean of both tones' half-height crossings."""
    reach = WINDOW + _BOX
    low, high = max(0, near - reach), min(len(pcm), near + reach)
    part = np.concatenate([np.zeros(_BOX), pcm[low:high].astype(np.float64), np.zeros(_BOX)])
    if not rising:
        part = part[::-1]
    crossings = []
    for tone in pair:
        turning = part * np.exp(-2j * np.pi * tone / SAMPLE_RATE_HZ * np.arange(len(part)))
        total = np.concatenate([[0.0], np.cumsum(turning)])
        envelope = np.abs(total[_BOX:] - total[:-_BOX])
        # Inside the run the envelope stands on its plateau: the half that lies later in (reading) time.
        half = (
            float(np.median(envelope[len(envelope) // 2 + _BOX : -_BOX] if len(envelope) > 4 * _BOX else envelope)) / 2
        )
        below = np.flatnonzero(envelope[: len(envelope) * 3 // 4] < half)
        if not len(below):
            crossings.append(0.0)
            continue
        at = int(below[-1])
        if at + 1 >= len(envelope):
            crossings.append(float(at))
            continue
        step = envelope[at + 1] - envelope[at]
        crossings.append(at + float((half - envelope[at]) / step) if step > 0 else float(at))
    # envelope[i] covers samples [i, i + BOX): its middle is the crossing; the pad shifts by BOX.
    middle = float(np.mean(crossings)) + _BOX / 2 - _BOX
    edge = low + middle if rising else high - middle
    return min(max(edge, 0.0), float(len(pcm)))
