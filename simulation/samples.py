"""The sounds of `audio_samples/`, by name, and the tone pairs that tell one programme from another.

The one source of tones for demo stations, tests and benchmarks: a programme is two sines of `TONES_HZ` sounding
together, so an ear finds out from the recorded PCM alone which programme sounded and when. The grid was chosen to
survive Opus at 16 kbit/s and MP3 at 32 kbit/s; no tone is twice another.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from broadcast_server.audio.formats import SAMPLE_RATE_HZ, to_pcm
from broadcast_server.domain.errors import NotFound

SAMPLES_DIR: Final = Path(__file__).resolve().parents[1] / "audio_samples"
TONES_HZ: Final = (500, 700, 900, 1100, 1300, 1600, 1900, 2300)
_EDGE_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Sample:
    """One file of the folder. `tones`: its pair in Hz, low first, or None for speech and music."""

    name: str
    path: Path
    tones: tuple[int, int] | None
    duration_s: float
    sha256: str
    text: str | None


def sample(name: str) -> Sample:
    """The sample of this name. Raises `NotFound`."""
    found = _manifest().get(name)
    if found is None:
        raise NotFound("sample_unknown", name=name)
    return found


def all_samples() -> tuple[Sample, ...]:
    """Every sample, in order of name."""
    return tuple(_manifest().values())


def tone_pcm(pair: Sequence[int], seconds: float, *, level: float = 0.25, rate_hz: int = SAMPLE_RATE_HZ) -> bytes:
    """Two sines together, each `level` of full scale, as s16le mono PCM, with edges of 10 ms that do not click."""
    count = round(seconds * rate_hz)
    at_s = np.arange(count, dtype=np.float64) / rate_hz
    sound = sum((level * np.sin(2.0 * np.pi * tone_hz * at_s) for tone_hz in pair), np.zeros(count))
    edge = min(count // 2, round(_EDGE_S * rate_hz))
    if edge:
        ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(edge) / edge)
        sound[:edge] *= ramp
        sound[-edge:] *= ramp[::-1]
    return to_pcm(sound.astype(np.float32)).tobytes()


@functools.cache
def _manifest() -> dict[str, Sample]:
    told = json.loads((SAMPLES_DIR / "manifest.json").read_text(encoding="utf-8"))
    return {
        one["name"]: Sample(
            name=one["name"],
            path=SAMPLES_DIR / one["file"],
            tones=tuple(one["tones_hz"]) if one["tones_hz"] else None,
            duration_s=one["duration_s"],
            sha256=one["sha256"],
            text=one["text"],
        )
        for one in sorted(told["samples"], key=lambda one: str(one["name"]))
    }
