"""What a fleet's recordings say about the broadcasts that were planned: who heard which, when, and how far apart.

Works from the nodes' WAV files alone (`firmware-sim run --record`): sample k of `NODE.wav` is what sounded at
`sample0_utc_ns + k / 48 000 s` of the true clock. Identity is proven by the sound itself: a relay by its station's
pair of tones, a recording by correlation with the very file that was to sound. Nothing here asks the server what
happened.
"""

from __future__ import annotations

import itertools
import json
import wave
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt

from firmware_sim.ear import Pcm, heard
from speaker_protocol.hazards import HAZARDS, TONES

RATE_HZ: Final = 48_000
LISTEN_AROUND_NS: Final = 3_000_000_000
HEARD_SHARE: Final = 0.5
"""A node counts as having heard a relay if it sounded this share of the planned time with the right tones."""
_SLOW: Final = 6
"""Recordings are compared at 8 kHz, so that a clock that drifts by 50 ppm does not spoil the likeness."""
_PROBE_S: Final = 3.0
_LIKENESS: Final = 0.6
_EARLY_NS: Final = 100_000_000
_TONE_WINDOW: Final = 2_400
_TONE_HOP: Final = 240
_TONE_SHARE: Final = 0.8
"""Share of a window's power in the one tone of the pattern that sounds then."""
_TONE_POWER: Final = 200.0**2


@dataclass(frozen=True, slots=True)
class Recording:
    """One node's output in true time."""

    node_id: str
    pcm: Pcm
    sample0_ns: int

    def part(self, start_ns: int, end_ns: int) -> tuple[Pcm, int]:
        """What sounded in `[start_ns, end_ns)`, and the instant of its first sample."""
        first = max(0, (start_ns - self.sample0_ns) * RATE_HZ // 1_000_000_000)
        last = max(first, (end_ns - self.sample0_ns) * RATE_HZ // 1_000_000_000)
        return self.pcm[first:last], self.sample0_ns + round(first * 1e9 / RATE_HZ)


StartOf = Callable[[Recording], int | None]
"""When a recording began to sound what was expected, in ns of true time; None if it did not."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How a broadcast came out. Errors in milliseconds, positive when late; skews over all pairs of nodes."""

    nodes_planned: int
    nodes_heard: int
    start_errors_ms: tuple[float, ...]
    skews_ms: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """The figures of the demo's report."""
        late_ms = [abs(error) for error in self.start_errors_ms]
        return {
            "nodes_planned": self.nodes_planned,
            "nodes_heard": self.nodes_heard,
            "start_error_ms": {"p50": percentile(late_ms, 50), "p99": percentile(late_ms, 99)},
            "skew_ms_p99": percentile(self.skews_ms, 99),
        }


def read_recordings(folder: Path) -> tuple[Recording, ...]:
    """Every node's recording in `folder`, by node. Raises `ValueError` on a file of another form."""
    return tuple(_read(facts) for facts in sorted(folder.glob("*.json")))


def listen(recordings: Sequence[Recording], planned_start: datetime, start_of: StartOf) -> Coverage:
    """Who sounded what was expected, and when each began."""
    starts = [start for recording in recordings if (start := start_of(recording)) is not None]
    planned_ns = to_ns(planned_start)
    return Coverage(
        nodes_planned=len(recordings),
        nodes_heard=len(starts),
        start_errors_ms=tuple((start - planned_ns) / 1e6 for start in starts),
        skews_ms=tuple(abs(one - other) / 1e6 for one, other in itertools.combinations(starts, 2)),
    )


def tones(pair: tuple[int, int], start: datetime, end: datetime) -> StartOf:
    """A pair of tones through `[start, end)`."""
    start_ns, end_ns = to_ns(start), to_ns(end)

    def start_of(recording: Recording) -> int | None:
        pcm, first_ns = recording.part(start_ns - LISTEN_AROUND_NS, end_ns + LISTEN_AROUND_NS)
        right = [sound for sound in heard(pcm, first_ns) if sound.pair == pair and sound.start_ns < end_ns]
        sounded_ns = sum(max(0, min(sound.end_ns, end_ns) - max(sound.start_ns, start_ns)) for sound in right)
        if sounded_ns < HEARD_SHARE * (end_ns - start_ns):
            return None
        return min(sound.start_ns for sound in right)

    return start_of


def attention(hazard: str, after: datetime) -> StartOf:
    """The first attention tone of a danger after an instant."""
    wanted = [hertz for hertz, _ in TONES[HAZARDS[hazard].pattern] if hertz]
    after_ns = to_ns(after)

    def start_of(recording: Recording) -> int | None:
        pcm, first_ns = recording.part(after_ns, after_ns + 3 * LISTEN_AROUND_NS)
        count = (len(pcm) - _TONE_WINDOW) // _TONE_HOP + 1
        if count <= 0:
            return None
        waves = np.lib.stride_tricks.sliding_window_view(pcm, _TONE_WINDOW)[::_TONE_HOP].astype(np.float64)
        phase = 2j * np.pi / RATE_HZ * np.outer(np.arange(_TONE_WINDOW), np.asarray(wanted, dtype=np.float64))
        power = (waves**2).mean(axis=1)
        share = (np.abs(waves @ np.exp(-phase)).max(axis=1) * 2 / _TONE_WINDOW) ** 2 / 2 / np.maximum(power, 1.0)
        loud = np.flatnonzero((share > _TONE_SHARE) & (power > _TONE_POWER))
        return None if not len(loud) else first_ns + round(float(loud[0]) * _TONE_HOP * 1e9 / RATE_HZ)

    return start_of


@dataclass(frozen=True, slots=True)
class CutIn:
    """What an emergency did to a relay that sounded: all from the nodes that sounded its tone."""

    cut_ms: tuple[float, ...]
    """From the request to the first tone."""
    relay_ms: tuple[float, ...]
    """Of the relay, between the first tone and the end of the round."""
    back_ms: tuple[float, ...]
    """From the end of the round to the relay again; only of nodes where it came back."""

    def as_json(self) -> dict[str, Any]:
        """As the demo reports it."""
        return {
            "nodes_cut": len(self.cut_ms),
            "cut_ms_p99": percentile(self.cut_ms, 99),
            "relay_ms_during_it": round(sum(self.relay_ms), 1),
            "nodes_handed_back": len(self.back_ms),
            "handed_back_ms_p99": percentile(self.back_ms, 99),
        }


def cut_in(
    recordings: Sequence[Recording], tone: StartOf, relay: tuple[int, int], asked_at: datetime, over_at: datetime
) -> CutIn:
    """How an emergency, asked for at an instant, took the air from a relay until its round was over, and gave it back.

    The relay may be heard again a tenth of a second early: a node's round begins by the node's own clock.
    """
    cut_ms, relay_ms, back_ms = [], [], []
    asked_ns, over_ns = to_ns(asked_at), to_ns(over_at)
    for recording in recordings:
        start_ns = tone(recording)
        if start_ns is None:
            continue
        cut_ms.append((start_ns - asked_ns) / 1e6)
        pcm, first_ns = recording.part(start_ns, over_ns + LISTEN_AROUND_NS)
        sounds = [sound for sound in heard(pcm, first_ns) if sound.pair == relay]
        until_ns = over_ns - _EARLY_NS
        relay_ms.append(sum(max(0, min(sound.end_ns, until_ns) - sound.start_ns) for sound in sounds) / 1e6)
        after = [sound.start_ns for sound in sounds if sound.end_ns > over_ns]
        if after:
            back_ms.append(max(0, min(after) - over_ns) / 1e6)
    return CutIn(tuple(cut_ms), tuple(relay_ms), tuple(back_ms))


def sound_of(reference: Pcm, start: datetime) -> StartOf:
    """A recording of `reference` (48 kHz mono) from its first sample on, about `start`.

    A reference that is a pair of tones is known by them (it is like itself at every period). Any other by likeness, the
    normalised correlation of its first seconds: an echo, another item or silence stays far below.
    """
    pairs = heard(reference)
    if pairs:
        lead = timedelta(microseconds=pairs[0].start_ns // 1_000)
        length = timedelta(microseconds=(pairs[0].end_ns - pairs[0].start_ns) // 1_000)
        of_tones = tones(pairs[0].pair, start + lead, start + lead + length)
        return lambda recording: None if (at := of_tones(recording)) is None else at - pairs[0].start_ns
    probe = _slowed(reference[: round(_PROBE_S * RATE_HZ)])
    start_ns = to_ns(start)

    def start_of(recording: Recording) -> int | None:
        length_ns = round(_PROBE_S * 1e9)
        pcm, first_ns = recording.part(start_ns - LISTEN_AROUND_NS, start_ns + length_ns + LISTEN_AROUND_NS)
        found = _best_match(_slowed(pcm), probe)
        return None if found is None else first_ns + round(found * _SLOW * 1e9 / RATE_HZ)

    return start_of


def decode(file: Path) -> Pcm:
    """Any audio file as 48 kHz mono, by PyAV."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    parts = []
    with av.open(str(file)) as container:
        for frame in container.decode(audio=0):
            parts += [out.to_ndarray()[0] for out in resampler.resample(frame)]
        parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
    return np.concatenate(parts).astype(np.int16)


def percentile(values: Iterable[float], rank: float) -> float | None:
    """The value that `rank` per cent of all do not exceed, to a hundredth; None if there are none."""
    told = list(values)
    return round(float(np.percentile(told, rank)), 2) if told else None


def to_ns(instant: datetime) -> int:
    """UTC nanoseconds of an aware instant."""
    return round(instant.timestamp() * 1e6) * 1_000


_Wave = npt.NDArray[np.float64]


def _read(facts_file: Path) -> Recording:
    facts = json.loads(facts_file.read_text("utf-8"))
    with wave.open(str(facts_file.with_suffix(".wav")), "rb") as sound:
        if (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) != (RATE_HZ, 1, 2):
            raise ValueError(f"{facts_file.with_suffix('.wav')} is not 48 kHz mono 16 bit")
        pcm = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2").astype(np.int16)
    return Recording(facts["node_id"], pcm, facts["sample0_utc_ns"])


def _slowed(pcm: Pcm) -> _Wave:
    """At 8 kHz, by the mean of each six samples."""
    whole = len(pcm) // _SLOW * _SLOW
    slow: _Wave = pcm[:whole].astype(np.float64).reshape(-1, _SLOW).mean(axis=1)
    return slow


def _best_match(wave_8k: _Wave, probe: _Wave) -> float | None:
    """Where `probe` lies in `wave_8k`, in samples with a parabola's fraction; None if it is nowhere like it."""
    if len(wave_8k) < len(probe) or not probe.any():
        return None
    size = 1 << (len(wave_8k) + len(probe)).bit_length()
    spectrum = np.fft.rfft(wave_8k, size) * np.conj(np.fft.rfft(probe, size))
    likeness = np.fft.irfft(spectrum, size)[: len(wave_8k) - len(probe) + 1]
    power = np.concatenate([[0.0], np.cumsum(wave_8k**2)])
    under = np.sqrt(np.maximum(power[len(probe) :] - power[: -len(probe)], 1.0) * float((probe**2).sum()))
    likeness = likeness / under
    at = int(likeness.argmax())
    if likeness[at] < _LIKENESS:
        return None
    if not 0 < at < len(likeness) - 1:
        return float(at)
    before, peak, after = (float(likeness[at + step]) for step in (-1, 0, 1))
    bend = before - 2 * peak + after
    return at + (0.5 * (before - after) / bend if bend else 0.0)
