"""What is wrong with sound that comes: silence, a stuck buffer, over-level, a constant, noise; and a drifting clock.

Looks at PCM (`audio.formats`) before anything is encoded. Pure arithmetic: no clock, no task. A maintainer must not
break: (1) every threshold is data; (2) a pause in speech, a test tone and a time signal are not faults; (3) a fault
goes away by itself when what comes is good again; (4) time is counted in samples here, so a burst is judged as a burst.

A loop is told from a tone by its period: a tone repeats within 25 ms, a stuck buffer of a sound card later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from broadcast_server.audio.formats import FULL_SCALE, SAMPLE_RATE_HZ, SILENCE_DBFS, dbfs, pcm_of

_WINDOW_MS: Final = 100
_WINDOW: Final = SAMPLE_RATE_HZ * _WINDOW_MS // 1000
_RING: Final = 2 * SAMPLE_RATE_HZ
_THIN: Final = 6
"""The search for a loop works at 8 kHz."""
_THIN_HZ: Final = SAMPLE_RATE_HZ // _THIN
_LOOK_EVERY: Final = 5
_FFT: Final = 1 << 15

Floats = npt.NDArray[np.float64]


class Fault(StrEnum):
    """What is wrong with the sound."""

    SILENT = "source_silent"
    STUCK = "stuck"
    OVERLEVEL = "overlevel"
    CONSTANT = "constant"
    NOISE = "noise"


WRONG_SOUND: Final = frozenset({Fault.STUCK, Fault.OVERLEVEL, Fault.CONSTANT, Fault.NOISE})
"""Faults of which not one more sample shall sound; a silence does no harm while a successor is found."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When sound is called bad. Levels in dBFS, shares between 0 and 1."""

    silent_dbfs: float = -50.0
    silent_ms: int = 10_000
    stuck_likeness: float = 0.99
    """Correlation of the last second with what was a period earlier."""
    stuck_periods_ms: tuple[int, int] = (25, 1_000)
    clipped_share: float = 0.2
    clipped_at: float = 0.985
    loudest_dbfs: float = -3.5
    overlevel_ms: int = 1_200
    constant_share: float = 0.05
    constant_ms: int = 1_000
    noise_flatness: float = 0.7
    noise_dbfs: float = -12.0
    noise_ms: int = 2_000
    drift_ppm: float = 200.0


USUAL_THRESHOLDS: Final = Thresholds()


class Watch:
    """Judges the sound of one source as it passes."""

    def __init__(self, thresholds: Thresholds = USUAL_THRESHOLDS) -> None:
        self.thresholds = thresholds
        self.level_dbfs = SILENCE_DBFS
        """RMS of the last 100 ms, without the constant part."""
        self.restart()

    def restart(self) -> None:
        """The source came anew: nothing of before counts."""
        self._rest = b""
        self._ring = np.zeros(0, dtype=np.float64)
        self._ms = dict.fromkeys(Fault, 0)
        self._windows = 0
        self._is_stuck = self._is_noise = False

    @property
    def fault(self) -> Fault | None:
        """What is wrong now; the worst first."""
        limits = self.thresholds
        if self._is_stuck:
            return Fault.STUCK
        if self._ms[Fault.OVERLEVEL] >= limits.overlevel_ms:
            return Fault.OVERLEVEL
        if self._ms[Fault.NOISE] >= limits.noise_ms:
            return Fault.NOISE
        if self._ms[Fault.CONSTANT] >= limits.constant_ms:
            return Fault.CONSTANT
        if self._ms[Fault.SILENT] >= limits.silent_ms:
            return Fault.SILENT
        return None

    @property
    def is_suspicious(self) -> bool:
        """Whether a fault is near: time to call the successor."""
        return any(self._ms[fault] > 0 for fault in WRONG_SOUND) or (
            self._ms[Fault.SILENT] >= self.thresholds.silent_ms * 7 // 10
        )

    def feed(self, block: bytes) -> None:
        """Look at the next samples."""
        self._rest += block
        size = _WINDOW * 2
        whole = len(self._rest) // size
        for number in range(whole):
            self._window(pcm_of(self._rest[number * size : (number + 1) * size]) / FULL_SCALE)
        self._rest = self._rest[whole * size :]

    # -- inside

    def _window(self, sound: Floats) -> None:
        limits = self.thresholds
        mean = float(np.mean(sound))
        rms_dbfs = dbfs(float(np.std(sound)))
        clipped = float(np.mean(np.abs(sound) >= limits.clipped_at))
        self.level_dbfs = rms_dbfs
        self._count(Fault.SILENT, rms_dbfs < limits.silent_dbfs)
        self._count(Fault.CONSTANT, abs(mean) > limits.constant_share)
        # Speech driven into the stops has quiet moments between its syllables: they count half.
        is_over = clipped > limits.clipped_share or rms_dbfs > limits.loudest_dbfs
        over_ms = self._ms[Fault.OVERLEVEL] + (_WINDOW_MS if is_over else -_WINDOW_MS // 2)
        self._ms[Fault.OVERLEVEL] = min(max(0, over_ms), limits.overlevel_ms + 500)
        self._ring = np.concatenate((self._ring[-(_RING - _WINDOW) :], sound))
        self._windows += 1
        if rms_dbfs < limits.silent_dbfs:
            self._is_stuck = self._is_noise = False
        elif self._windows % _LOOK_EVERY == 0:
            self._is_stuck = self._repeats()
            self._is_noise = rms_dbfs > limits.noise_dbfs and self._flatness() > limits.noise_flatness
        self._count(Fault.NOISE, self._is_noise)

    def _count(self, fault: Fault, is_seen: bool) -> None:
        self._ms[fault] = self._ms[fault] + _WINDOW_MS if is_seen else 0

    def _repeats(self) -> bool:
        """Whether the last second is what was heard one period earlier, for a period that is no tone's."""
        if len(self._ring) < _RING:
            return False
        thin = self._ring.reshape(-1, _THIN).mean(axis=1)
        thin -= thin.mean()
        last = thin[-_THIN_HZ:]
        product = np.fft.irfft(np.fft.rfft(thin, _FFT) * np.conj(np.fft.rfft(last, _FFT)), _FFT)
        squares = np.concatenate(([0.0], np.cumsum(thin * thin)))
        starts = np.arange(len(thin) - _THIN_HZ + 1)
        energy = squares[starts + _THIN_HZ] - squares[starts]
        own = float(energy[-1])
        if own <= 0.0:
            return False
        likeness = (product[starts] / np.sqrt(np.maximum(energy * own, 1e-12)))[::-1]  # by lag
        shortest, longest = (ms * _THIN_HZ // 1000 for ms in self.thresholds.stuck_periods_ms)
        least = self.thresholds.stuck_likeness
        is_tone = bool(np.max(likeness[_THIN_HZ // 500 : shortest]) >= least)
        return not is_tone and bool(np.max(likeness[shortest : longest + 1]) >= least)

    def _flatness(self) -> float:
        """1 for white noise, near 0 for speech and music; of the band that every codec keeps."""
        if len(self._ring) < SAMPLE_RATE_HZ:
            return 0.0
        parts = self._ring[-SAMPLE_RATE_HZ:].reshape(-1, _WINDOW) * np.hanning(_WINDOW)
        power = np.mean(np.abs(np.fft.rfft(parts, axis=1)) ** 2, axis=0)
        band = power[200 * _WINDOW // SAMPLE_RATE_HZ : 8_000 * _WINDOW // SAMPLE_RATE_HZ] + 1e-12
        return float(np.exp(np.mean(np.log(band))) / np.mean(band))


class DriftMeter:
    """How fast a source's clock runs against ours, in parts per million, from when its samples come.

    A source's burst and a network's jitter only make samples late, never early, so of each window the greatest lead
    counts; the slope over a minute or more is the drift.
    """

    WINDOW_S: Final = 10.0
    LEAST_WINDOWS: Final = 6
    MOST_WINDOWS: Final = 60

    def __init__(self) -> None:
        self._leads: deque[tuple[float, float]] = deque(maxlen=self.MOST_WINDOWS)
        self.reset()

    def reset(self) -> None:
        """The source came anew, or was held back by us: what it showed until now does not tell its speed."""
        self._leads.clear()
        self._samples = 0
        self._began_s: float | None = None
        self._best: tuple[float, float] | None = None
        self._ends_s = 0.0

    def feed(self, samples: int, now_s: float) -> None:
        """So many samples have come."""
        if self._began_s is None:
            self._began_s, self._ends_s = now_s, now_s + self.WINDOW_S
        self._samples += samples
        lead_s = self._samples / SAMPLE_RATE_HZ - (now_s - self._began_s)
        if self._best is None or lead_s > self._best[1]:
            self._best = (now_s, lead_s)
        if now_s >= self._ends_s:
            self._leads.append(self._best)
            self._best, self._ends_s = None, now_s + self.WINDOW_S

    @property
    def ppm(self) -> float | None:
        """Positive: the source is fast. None until a minute was seen."""
        # The first window holds the burst of the beginning.
        seen = list(self._leads)[1:]
        if len(seen) < self.LEAST_WINDOWS:
            return None
        at_s, lead_s = np.array(seen).T
        return float(np.polyfit(at_s - at_s[0], lead_s, 1)[0] * 1e6)
