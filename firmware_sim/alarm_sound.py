"""What a node makes itself of an emergency: the attention tone of each danger, sample by sample.

A tone is the same whoever asks for which of its samples, so that it can be rendered block by block, joined in its
middle and cut anywhere: step after step of its pattern, each ramped at both ends. No step is a tone of the test
programmes (`ear.TONES_HZ`), so that a recording says what sounded.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from speaker_protocol.hazards import TONES, Pattern, pattern_of
from speaker_protocol.messages import AlertBody
from speaker_protocol.rounds import AlertNature

Pcm = npt.NDArray[np.int16]

SAMPLE_RATE_HZ: Final = 48_000
AMPLITUDE: Final = 12_000.0
_RAMP_SAMPLES: Final = 240


def pattern_for(alert: AlertBody) -> Pattern:
    """The tone before an alert."""
    return pattern_of(alert.hazard, is_final=alert.nature is AlertNature.FINAL)


def attention(pattern: Pattern, position: npt.NDArray[np.floating], level: float = 1.0) -> Pcm:
    """The tone at (fractional) sample positions from its beginning. `level`: linear gain, clipped at full scale."""
    steps = TONES[pattern]
    lengths = np.array([ms * 48 for _, ms in steps], dtype=np.float64)
    ends = np.cumsum(lengths)
    inside = np.mod(position, ends[-1])
    index = np.minimum(np.searchsorted(ends, inside, side="right"), len(steps) - 1)
    since = inside - (ends - lengths)[index]
    hertz = np.array([hz for hz, _ in steps], dtype=np.float64)[index]
    edge = np.clip(np.minimum(since, lengths[index] - since) / _RAMP_SAMPLES, 0.0, 1.0)
    wave = level * AMPLITUDE * edge * np.sin(2 * np.pi * hertz * since / SAMPLE_RATE_HZ)
    sound: Pcm = np.rint(np.clip(wave, -32768.0, 32767.0)).astype(np.int16)
    return sound
