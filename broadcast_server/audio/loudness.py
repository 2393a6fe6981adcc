"""How loud a recording is, and how it is brought to −16 LUFS under a ceiling of true peaks.

A maintainer must not break: everything here reads PCM in blocks and never holds a recording; the limiter's gain at
every sample is at most what its 5 ms block allows, so no true peak passes the ceiling. Loudness is EBU R128
(ITU-R BS.1770, by libavfilter's ebur128 in process: 0.7 s of CPU for 10 min, against 2.6 s as a child with true peaks).
True peaks (BS.1770 annex 2, four times oversampled) are looked for only where a sample comes near the ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import av
import av.filter
import numpy as np
import numpy.typing as npt

from broadcast_server.audio.formats import (
    SAMPLE_RATE_HZ,
    Pcm,
    Samples,
    dbfs,
    gain_of_db,
    ms_of_samples,
    to_float,
    to_pcm,
)

TARGET_LUFS: Final = -16.0
CEILING_DBTP: Final = -1.5
MOST_GAIN_DB: Final = 24.0
SILENT_DBFS: Final = -50.0
BLOCK_SAMPLES: Final = SAMPLE_RATE_HZ  # what callers hand over at a time: 1 s

_NOTHING_LUFS: Final = -70.0  # EBU R128's absolute gate: below it, nothing was measured
_TIME_BASE: Final = Fraction(1, SAMPLE_RATE_HZ)
STEP_SAMPLES: Final = SAMPLE_RATE_HZ // 200  # 5 ms: the limiter's attack, and the grain of its gain
_STEPS_A_HOP: Final = 20  # silence is looked for in stretches of 100 ms
_FULL: Final = 32_767


@dataclass(frozen=True, slots=True)
class LoudnessReport:
    """What was found in a recording and done to it.

    `integrated_lufs` is None when nothing passed the gate (silence, or shorter than 0.4 s). Silence is 100 ms under
    −50 dBFS. `clipped_samples` stand at full scale, three or more in a row.
    """

    duration_ms: int
    integrated_lufs: float | None
    sample_peak_dbfs: float
    gain_db: float
    silence_ms: int
    leading_silence_ms: int
    trailing_silence_ms: int
    longest_silence_ms: int
    clipped_samples: int
    is_silent: bool
    is_clipped: bool


class Meter:
    """Measures PCM block by block."""

    def __init__(self) -> None:
        self._graph = av.filter.Graph()
        source = self._graph.add_abuffer(
            sample_rate=SAMPLE_RATE_HZ, format="s16", layout="mono", time_base=_TIME_BASE, name="in"
        )
        measure = self._graph.add("ebur128", "metadata=1:framelog=quiet")
        sink = self._graph.add("abuffersink")
        source.link_to(measure)
        measure.link_to(sink)
        self._graph.configure()
        self._loudness = _NOTHING_LUFS
        self._samples = 0
        self._peak = 0
        self._clipped = 0
        self._run_at_full = 0
        self._powers: list[Samples] = []
        self._peaks: list[Samples] = []
        self._rest = np.zeros(0, np.int16)

    def hear(self, pcm: Pcm) -> None:
        """The next block, of any length."""
        if len(pcm) == 0:
            return
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, self._samples
        self._graph.push(frame)
        self._pull()
        self._samples += len(pcm)
        peak = max(int(pcm.max()), -int(pcm.min()))
        self._peak = max(self._peak, peak)
        self._count_clipping(pcm, peak)
        waiting = np.concatenate((self._rest, pcm)) if len(self._rest) else pcm
        whole = len(waiting) // STEP_SAMPLES * STEP_SAMPLES
        steps = to_float(waiting[:whole]).reshape(-1, STEP_SAMPLES)
        self._powers.append(np.einsum("ij,ij->i", steps, steps) / np.float32(STEP_SAMPLES))
        self._peaks.append(np.abs(steps, out=steps).max(axis=1))
        self._rest = waiting[whole:].copy()

    def report(self, *, target_lufs: float = TARGET_LUFS, ceiling_dbtp: float = CEILING_DBTP) -> LoudnessReport:
        """After the last block. The gain makes good what the limiter at `ceiling_dbtp` is going to take."""
        self._graph.push(None)
        self._pull()
        powers, peaks = _joined(self._powers), _joined(self._peaks)
        hops = powers[: len(powers) // _STEPS_A_HOP * _STEPS_A_HOP].reshape(-1, _STEPS_A_HOP).mean(axis=1)
        silent = hops < _SILENT_POWER
        runs = _runs(silent)
        measured = self._loudness if self._loudness > _NOTHING_LUFS else None
        peak_dbfs = dbfs(self._peak / _FULL)
        wished_db = 0.0 if measured is None else target_lufs - measured
        gain_db = made_good_db(powers, peaks, wished_db, ceiling_dbtp=ceiling_dbtp)
        return LoudnessReport(
            duration_ms=ms_of_samples(self._samples),
            integrated_lufs=None if measured is None else round(measured, 2),
            sample_peak_dbfs=round(peak_dbfs, 2),
            gain_db=round(float(min(MOST_GAIN_DB, gain_db)), 2),
            silence_ms=int(silent.sum()) * 100,
            leading_silence_ms=100 * (runs[0][1] if runs and runs[0][0] == 0 else 0),
            trailing_silence_ms=100 * (runs[-1][1] if runs and sum(runs[-1]) == len(silent) else 0),
            longest_silence_ms=100 * max((length for _, length in runs), default=0),
            clipped_samples=self._clipped,
            is_silent=bool(silent.all()) and peak_dbfs < SILENT_DBFS + 12.0,
            is_clipped=self._clipped > self._samples * _CLIPPED_SHARE,
        )

    def _pull(self) -> None:
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            told = frame.metadata.get("lavfi.r128.I") if isinstance(frame, av.AudioFrame) else None
            if told is not None:
                self._loudness = float(told)

    def _count_clipping(self, pcm: Pcm, peak: int) -> None:
        if peak < _FULL:
            self._run_at_full = 0
            return
        at_full = (pcm >= _FULL) | (pcm <= -_FULL)
        for start, length in _runs(at_full):
            joined = length + (self._run_at_full if start == 0 else 0)
            if joined >= _CLIPPED_RUN:
                self._clipped += length
        self._run_at_full = len(pcm) - int(np.flatnonzero(~at_full)[-1]) - 1 if not at_full.all() else len(pcm)


_SILENT_POWER: Final = gain_of_db(SILENT_DBFS) ** 2
_CLIPPED_RUN: Final = 3
_CLIPPED_SHARE: Final = 0.0001


def _joined(parts: list[Samples]) -> Samples:
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where stretches of True begin and how long they are."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(start), int(end - start)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


# --------------------------------------------------------------------------------------------------------- limiter

_RELEASE: Final = gain_of_db(1.0)  # a step: 6 dB come back in 30 ms, between two syllables
_NEAR: Final = gain_of_db(
    -4.0
)  # a true peak stands at most about 3 dB above its samples, in sound that is no test signal
_REACH: Final = 8


def _oversampling() -> Samples:
    """Windowed sinc: the three points between two samples, from `_REACH` samples on either side."""
    at = np.arange(-_REACH + 1, _REACH + 1)[:, None] - np.array([0.25, 0.5, 0.75])[None, :]
    window = 0.5 + 0.5 * np.cos(np.pi * at / (_REACH + 0.5))
    taps = np.sinc(at) * window
    return np.asarray(taps / taps.sum(axis=0), dtype=np.float32)


_BETWEEN: Final = _oversampling()


_GATE: Final = 0.1  # of the mean power: what EBU R128's relative gate (−10 LU) would leave out
_MOST_MADE_GOOD_DB: Final = 6.0
_ROUNDS: Final = 4
_STEPS_A_MINUTE: Final = 12_000


def made_good_db(powers: Samples, peaks: Samples, wished_db: float, *, ceiling_dbtp: float) -> float:
    """The gain after which the limited sound is louder by `wished_db`, from the power and peak of every step.

    The limiter is played through on the steps alone, without the sound: a few thousandths of the work.
    """
    if not len(powers):
        return wished_db
    gate, highest = _GATE * float(powers.mean()), float(peaks.max())
    whole = sum(float(part[part > gate].sum(dtype=np.float64)) for part in _parts(powers))
    gain_db, ceiling = wished_db, gain_of_db(ceiling_dbtp)
    for _ in range(_ROUNDS if whole > 0.0 else 0):
        gain = gain_of_db(gain_db)
        if highest * gain <= ceiling:
            break
        left, release = 0.0, 1.0
        for power, peak in zip(_parts(powers), _parts(peaks), strict=True):
            asked = np.minimum(1.0, ceiling / np.maximum(peak.astype(np.float64) * gain, 1e-9))
            limits, release = _released(asked, release)
            around = np.minimum(limits, np.minimum(np.append(limits[1:], 1.0), np.append(1.0, limits[:-1])))
            left += float((power * ((limits + around) / 2.0) ** 2)[power > gate].sum())
        short_db = wished_db - (gain_db + 10.0 * math.log10(left / whole))
        if abs(short_db) < 0.05:
            break
        gain_db = min(wished_db + _MOST_MADE_GOOD_DB, gain_db + short_db)
    return gain_db


def _parts(steps: Samples) -> Iterator[Samples]:
    """A minute at a time: two hours at once would be 100 MB of intermediate results."""
    for at in range(0, len(steps), _STEPS_A_MINUTE):
        yield steps[at : at + _STEPS_A_MINUTE]


def levelled(blocks: Iterable[Pcm], *, gain_db: float, ceiling_dbtp: float = CEILING_DBTP) -> Iterator[Pcm]:
    """`blocks` with `gain_db`, true peaks held under the ceiling; as many samples out as in, in the same blocks.

    Look-ahead of one step (5 ms) costs no delay, since the next block is at hand. Blocks: whole steps, the last any.
    """
    gain, ceiling = np.float32(gain_of_db(gain_db)), gain_of_db(ceiling_dbtp)
    before, nothing = np.zeros(_REACH, np.float32), np.zeros(0, np.float32)
    here, release, node = nothing, 1.0, 1.0
    for following in _with_end(blocks):
        coming = nothing if following is None else to_float(following) * gain
        if len(here):
            limits, release = _released(_allowed(before, here, coming, ceiling), release)
            ahead = min(1.0, release * _RELEASE)
            past = np.concatenate((before, here[-_REACH:]))[-_REACH:]
            if len(coming):
                first, rest = coming[:STEP_SAMPLES], coming[STEP_SAMPLES:]
                ahead = min(ahead, float(_allowed(past, first, rest, ceiling)[0]))
            nodes = np.concatenate(([min(node, limits[0])], np.minimum(limits, np.append(limits[1:], ahead))))
            node = float(nodes[-1])
            yield to_pcm(here if nodes.min() >= 1.0 else here * _between_nodes(nodes, len(here)))
            before = past
        here = coming


def _with_end(blocks: Iterable[Pcm]) -> Iterator[Pcm | None]:
    for block in blocks:
        if len(block):
            yield block
    yield None


def _allowed(past: Samples, block: Samples, future: Samples, ceiling: float) -> npt.NDArray[np.float64]:
    """The largest gain for each step of the block; the last step may be short. `past`: `_REACH` samples."""
    steps = -(-len(block) // STEP_SAMPLES)
    padded = np.zeros(steps * STEP_SAMPLES, np.float32)
    padded[: len(block)] = np.abs(block)
    peaks = padded.reshape(steps, STEP_SAMPLES).max(axis=1).astype(np.float64)
    near = np.flatnonzero(peaks > ceiling * _NEAR)
    if len(near):
        joined = np.concatenate((past, block, future[:_REACH], np.zeros(STEP_SAMPLES + _REACH, np.float32)))
        # `_REACH` samples to either side of each step: a peak between two steps counts for both.
        spans = joined[near[:, None] * STEP_SAMPLES + np.arange(STEP_SAMPLES + 2 * _REACH)[None, :]]
        windows = np.lib.stride_tricks.sliding_window_view(spans, 2 * _REACH, axis=1)
        between = np.abs(windows @ _BETWEEN).max(axis=(1, 2))
        peaks[near] = np.maximum(peaks[near], between)
    allowed: npt.NDArray[np.float64] = np.minimum(1.0, ceiling / np.maximum(peaks, 1e-9))
    return allowed


def _released(asked: npt.NDArray[np.float64], release: float) -> tuple[npt.NDArray[np.float64], float]:
    """The gain of each step when it may rise by `_RELEASE` a step only; and the last, for the next block.

    `r[k] = min(asked[k], r[k-1]·R)` without a loop: in logarithms, with the slope taken out, it is a running minimum.
    """
    if release >= 1.0 and asked.min() >= 1.0:
        return asked, 1.0
    slope = math.log(_RELEASE) * np.arange(1, len(asked) + 1)
    logs = np.concatenate(([math.log(release)], np.log(asked) - slope))
    limits: npt.NDArray[np.float64] = np.exp(np.minimum.accumulate(logs)[1:] + slope)
    return limits, float(limits[-1])


def _between_nodes(nodes: npt.NDArray[np.float64], count: int) -> Samples:
    """The gain of every sample: straight lines from node to node."""
    part = np.arange(STEP_SAMPLES, dtype=np.float32) / np.float32(STEP_SAMPLES)
    first, last = nodes[:-1, None].astype(np.float32), nodes[1:, None].astype(np.float32)
    lines: Samples = (first + (last - first) * part[None, :]).reshape(-1)[:count]
    return lines
