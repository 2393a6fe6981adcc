"""The one PCM format everything passes through: 48 kHz, mono, signed 16 bit little-endian, in frames of 20 ms.

A maintainer must not break: Opus packets, relay batches and node recordings all count in these frames, so 20 ms is
960 samples is 1 920 bytes everywhere. Source: RFC 6716 (Opus runs at 48 kHz inside; 20 ms is its usual frame).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

SAMPLE_RATE_HZ: Final = 48_000
CHANNELS: Final = 1
SAMPLE_BYTES: Final = 2
FRAME_MS: Final = 20
FRAME_SAMPLES: Final = SAMPLE_RATE_HZ * FRAME_MS // 1000
FRAME_BYTES: Final = FRAME_SAMPLES * SAMPLE_BYTES
FULL_SCALE: Final = 32_768.0
SILENCE_DBFS: Final = -120.0

Pcm = npt.NDArray[np.int16]
Samples = npt.NDArray[np.float32]


def bytes_of_ms(duration_ms: int) -> int:
    """Bytes of PCM that last `duration_ms`, a whole number of samples."""
    return samples_of_ms(duration_ms) * SAMPLE_BYTES


def samples_of_ms(duration_ms: int) -> int:
    """Samples that last `duration_ms`."""
    return SAMPLE_RATE_HZ * duration_ms // 1000


def ms_of_bytes(count_bytes: int) -> int:
    """How long so many bytes of PCM last, rounded to the nearest millisecond."""
    return ms_of_samples(count_bytes // SAMPLE_BYTES)


def ms_of_samples(samples: int) -> int:
    """How long so many samples last, rounded to the nearest millisecond."""
    return (samples * 1000 + SAMPLE_RATE_HZ // 2) // SAMPLE_RATE_HZ


def pcm_of(block: bytes | bytearray | memoryview) -> Pcm:
    """The samples in a block of bytes, without copying. A trailing half sample is left out."""
    return np.frombuffer(block, dtype="<i2", count=len(block) // SAMPLE_BYTES)


def to_float(pcm: Pcm) -> Samples:
    """int16 → float32 in `[-1, 1)`."""
    return pcm.astype(np.float32) * np.float32(1.0 / FULL_SCALE)


def to_pcm(samples: Samples) -> Pcm:
    """float32 → int16, rounded to nearest, clipped at full scale."""
    scaled = samples * np.float32(FULL_SCALE)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1, out=scaled)
    pcm: Pcm = scaled.astype("<i2")
    return pcm


def dbfs(amplitude: float) -> float:
    """Amplitude (1.0 is full scale) in dBFS, never below `SILENCE_DBFS`."""
    return max(SILENCE_DBFS, 20.0 * math.log10(amplitude)) if amplitude > 0.0 else SILENCE_DBFS


def gain_of_db(gain_db: float) -> float:
    """The factor that `gain_db` means."""
    return float(10.0 ** (gain_db / 20.0))
