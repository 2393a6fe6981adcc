"""What a fleet's recordings say about the broadcasts that were planned: who heard which, when, and how far apart.

Works from the nodes' WAV files alone (`firmware-sim run --record`): sample k of `NODE.wav` is what sounded at
`sample0_utc_ns + k / 48 000 s` of the true clock. Identity is the pair of tones of a sample; nothing here asks the
server.
"""

from __future__ import annotations

import itertools
import json
import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from firmware_sim.ear import Heard, heard

LISTEN_BEFORE_NS: Final = 3_000_000_000
HEARD_SHARE: Final = 0.5
"""A node counts as having heard a broadcast if it sounded this share of the planned time with the right tones."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One node's sound, as pairs of tones in true time."""

    node_id: str
    sounds: tuple[Heard, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """One stretch of a broadcast that a set of nodes should have sounded. Instants are aware."""

    pair: tuple[int, int]
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Coverage:
    """How it came out. Errors in milliseconds, positive when late."""

    nodes_planned: int
    nodes_heard: int
    start_errors_ms: tuple[float, ...]
    skews_ms: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """The figures of the demo's report."""
        return {
            "nodes_planned": self.nodes_planned,
            "nodes_heard": self.nodes_heard,
            "start_error_ms": {
                "p50": percentile([abs(error) for error in self.start_errors_ms], 50),
                "p99": percentile([abs(error) for error in self.start_errors_ms], 99),
            },
            "skew_ms_p99": percentile(self.skews_ms, 99),
        }


def read_recordings(folder: Path) -> tuple[Recording, ...]:
    """Every node's recording in `folder`, by node."""
    return tuple(_read(facts) for facts in sorted(folder.glob("*.json")))


def listen(recordings: Sequence[Recording], expected: Expected) -> Coverage:
    """Who sounded `expected`, and when each began. Skews are over all pairs of nodes."""
    starts = [start for recording in recordings if (start := _start_of(recording, expected)) is not None]
    planned_ns = _ns(expected.start)
    return Coverage(
        nodes_planned=len(recordings),
        nodes_heard=len(starts),
        start_errors_ms=tuple((start - planned_ns) / 1e6 for start in starts),
        skews_ms=tuple(abs(one - other) / 1e6 for one, other in itertools.combinations(starts, 2)),
    )


def percentile(values: Iterable[float], rank: float) -> float | None:
    """The value that `rank` per cent of all do not exceed, to a hundredth; None if there are none."""
    told = list(values)
    return round(float(np.percentile(told, rank)), 2) if told else None


def _read(facts_file: Path) -> Recording:
    facts = json.loads(facts_file.read_text("utf-8"))
    with wave.open(str(facts_file.with_suffix(".wav")), "rb") as sound:
        if (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) != (48_000, 1, 2):
            raise ValueError(f"{facts_file.with_suffix('.wav')} is not 48 kHz mono 16 bit")
        pcm = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")
    return Recording(facts["node_id"], tuple(heard(pcm, facts["sample0_utc_ns"])))


def _start_of(recording: Recording, expected: Expected) -> int | None:
    start_ns, end_ns = _ns(expected.start), _ns(expected.end)
    right = [
        sound
        for sound in recording.sounds
        if sound.pair == expected.pair and sound.end_ns > start_ns - LISTEN_BEFORE_NS and sound.start_ns < end_ns
    ]
    sounded_ns = sum(max(0, min(sound.end_ns, end_ns) - max(sound.start_ns, start_ns)) for sound in right)
    if sounded_ns < HEARD_SHARE * (end_ns - start_ns):
        return None
    return min(sound.start_ns for sound in right)


def _ns(instant: datetime) -> int:
    return round(instant.timestamp() * 1e6) * 1_000
