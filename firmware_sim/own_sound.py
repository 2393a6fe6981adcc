"""Sounds of the node's own that a technician orders: a tone, and the code of the binding check spoken softly.

A sound is laid out on the card's samples from the first that is read, so whoever reads the same samples again after
a rewind hears the same: a code keeps its digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

Pcm = npt.NDArray[np.int16]

SAMPLE_RATE_HZ: Final = 48_000
TONE_HZ: Final = 1_000
TONE_PEAK: Final = 6_000
SOFT: Final = 0.2
"""Of the phrases' usual level: -14 dB, for whoever stands below the horn."""
LEAD_S: Final = 0.3
DIGIT_EVERY_S: Final = 0.9
TIMES: Final = 2
BETWEEN_S: Final = 1.0
REWOUND_S: Final = 2


class OwnSound:
    """A finished wave, placed when it is first read."""

    def __init__(self, wave: Pcm) -> None:
        self.wave = wave
        self._first: int | None = None

    def read(self, first: int, samples: int) -> Pcm:
        """What it sounds on these samples of the card; zeros beyond its end."""
        if self._first is None or first < self._first:
            self._first = first
        low = first - self._first
        part = self.wave[low : low + samples]
        return np.concatenate([part, np.zeros(samples - len(part), np.int16)])

    def is_over(self, first: int) -> bool:
        """Whether nothing of it is left from this sample of the card on, nor in what a rewind may take back."""
        return self._first is not None and first - self._first >= len(self.wave) + REWOUND_S * SAMPLE_RATE_HZ


def tone(seconds: int) -> OwnSound:
    """A sine of 1 kHz."""
    phase = 2 * np.pi * TONE_HZ * np.arange(seconds * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    return OwnSound((TONE_PEAK * np.sin(phase)).astype(np.int16))


def spoken(code: str, clip: Callable[[str], Pcm | None]) -> OwnSound | None:
    """Digit after digit, the whole twice; None where a digit's clip is broken, or there is no digit."""
    clips = [clip(f"digit_{digit}") for digit in code]
    if not clips or any(one is None for one in clips):
        return None
    step, lead, between = (round(span_s * SAMPLE_RATE_HZ) for span_s in (DIGIT_EVERY_S, LEAD_S, BETWEEN_S))
    once = len(clips) * step
    wave = np.zeros(lead + TIMES * once + (TIMES - 1) * between, np.int16)
    for time in range(TIMES):
        for place, one in enumerate(clips):
            at = lead + time * (once + between) + place * step
            if one is not None:
                wave[at : at + len(one)] = (one[:step] * SOFT).astype(np.int16)
    return OwnSound(wave)
