"""An ear for tests: which tone pair sounds when in a stretch of PCM (Goertzel at the eight tones of the grid).

Independent of the node's own ear on purpose: two programs that agree on a recording are better proof than one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulation.samples import TONES_HZ

WINDOW_MS = 40
HOP_MS = 10
AUDIBLE = 10 ** (-45 / 20)  # each tone of a pair, against full scale
SAME_LOUDNESS_DB = 12.0
ALONE_DB = 10.0
PURE = 0.7  # of the window's power
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Heard:
    """One stretch `[start_ms, end_ms)` in which a pair sounded without a pause."""

    pair: tuple[int, int]
    start_ms: int
    end_ms: int

    @property
    def length_ms(self) -> int:
        return self.end_ms - self.start_ms


def samples_of(pcm: bytes | npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    """s16le bytes or int16 samples as floats in [-1, 1)."""
    raw = np.frombuffer(pcm, "<i2") if isinstance(pcm, bytes | bytearray) else pcm
    return raw.astype(np.float64) / 32768


@functools.cache
def _ear(size: int, rate_hz: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.complex128]]:
    window = np.hanning(size)
    at_s = np.arange(size) / rate_hz
    return window, (np.exp(-2j * np.pi * np.outer(at_s, TONES_HZ)) * window[:, None]) * (2 / window.sum())


def tone_levels(windows: npt.NDArray[np.float64], rate_hz: int = 48_000) -> npt.NDArray[np.float64]:
    """The amplitude of each tone of the grid in each window: (windows, samples) → (windows, 8)."""
    _, turns = _ear(windows.shape[1], rate_hz)
    return np.abs(windows @ turns)


def pairs_of(windows: npt.NDArray[np.float64], rate_hz: int = 48_000) -> list[tuple[int, int] | None]:
    """The pair that sounds in each window: two tones about equally loud, and next to nothing else."""
    weights, _ = _ear(windows.shape[1], rate_hz)
    levels = tone_levels(windows, rate_hz)
    power = (windows**2 @ weights**2) / (weights**2).sum()
    pairs: list[tuple[int, int] | None] = []
    for row, whole in zip(levels, power, strict=True):
        order = np.argsort(row)[::-1]
        first, second, third = (max(1e-9, float(row[index])) for index in order[:3])
        is_pair = (
            second >= AUDIBLE
            and 20 * np.log10(first / second) <= SAME_LOUDNESS_DB
            and 20 * np.log10(second / third) >= ALONE_DB
            and (first**2 + second**2) / 2 >= PURE * whole
        )
        low, high = sorted((TONES_HZ[order[0]], TONES_HZ[order[1]]))
        pairs.append((low, high) if is_pair else None)
    return pairs


def hear(pcm: bytes | npt.NDArray[np.int16], rate_hz: int = 48_000, *, shortest_ms: int = 100) -> list[Heard]:
    """Every stretch of at least `shortest_ms`, in order. Ends are good to about half a window (20 ms)."""
    stretches: list[Heard] = []
    for at_ms, pair in _windows(samples_of(pcm), rate_hz):
        middle_ms = at_ms + WINDOW_MS // 2
        if pair is None:
            continue
        last = stretches[-1] if stretches else None
        if last is not None and last.pair == pair and middle_ms - last.end_ms <= 3 * HOP_MS:
            stretches[-1] = Heard(pair, last.start_ms, middle_ms + HOP_MS // 2)
        else:
            stretches.append(Heard(pair, middle_ms - HOP_MS // 2, middle_ms + HOP_MS // 2))
    return [stretch for stretch in stretches if stretch.length_ms >= shortest_ms]


def loudest_pair(pcm: bytes | npt.NDArray[np.int16], rate_hz: int = 48_000) -> tuple[int, int] | None:
    """The pair that sounded longest in all."""
    lengths: dict[tuple[int, int], int] = {}
    for stretch in hear(pcm, rate_hz):
        lengths[stretch.pair] = lengths.get(stretch.pair, 0) + stretch.length_ms
    return max(lengths, key=lambda pair: lengths[pair], default=None)


def _windows(samples: npt.NDArray[np.float64], rate_hz: int) -> Iterator[tuple[int, tuple[int, int] | None]]:
    size, hop = rate_hz * WINDOW_MS // 1000, rate_hz * HOP_MS // 1000
    if len(samples) < size:
        return
    windows = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    for first in range(0, len(windows), _BLOCK):
        for at, pair in enumerate(pairs_of(windows[first : first + _BLOCK], rate_hz)):
            yield (first + at) * HOP_MS, pair
