"""A live voice brought to one level as it comes: compressor, then limiter, block by block, with no delay added.

A maintainer must not break: as many samples go out as came in, at once; no sample passes the ceiling; what a block
becomes depends on it and on what came before, never on how the stream was cut into blocks of whole steps (5 ms).
Relayed stations pass through the same (`relay.reader`), so a voice and a station sound alike. Without look-ahead the
limiter's gain may jump down at the start of a block: a peak that is cut, not a click.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from broadcast_server.audio.formats import SAMPLE_RATE_HZ, SILENCE_DBFS, Pcm, Samples, gain_of_db, to_float, to_pcm

STEP_SAMPLES: Final = SAMPLE_RATE_HZ // 200
_STEP_MS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Curve:
    """How a voice is evened out; levels in dBFS (RMS of a step), times of one e-fold."""

    threshold_db: float = -20.0
    ratio: float = 3.0
    knee_db: float = 4.0
    makeup_db: float = 4.0
    attack_ms: float = 10.0
    release_ms: float = 250.0
    ceiling_dbfs: float = -1.5
    limiter_release_ms: float = 50.0


class Dynamics:
    """One voice's compressor and limiter, with what they remember from block to block."""

    def __init__(self, curve: Curve = Curve()) -> None:
        self._curve = curve
        self._attack = math.exp(-_STEP_MS / curve.attack_ms)
        self._release = math.exp(-_STEP_MS / curve.release_ms)
        self._limiter_release = math.exp(_STEP_MS / curve.limiter_release_ms)
        self._ceiling = gain_of_db(curve.ceiling_dbfs)
        self._reduction_db = 0.0
        self._limit = 1.0

    def hear(self, pcm: Pcm) -> Pcm:
        """The block, levelled; blocks of whole steps give the same sound however they are cut."""
        if not len(pcm):
            return pcm
        steps = -(-len(pcm) // STEP_SAMPLES)
        padded = np.zeros(steps * STEP_SAMPLES, np.float32)
        padded[: len(pcm)] = to_float(pcm)
        sound = padded.reshape(steps, STEP_SAMPLES)
        sound = sound * _lines(self._compressed(sound))
        sound *= _lines(self._limited(np.abs(sound).max(axis=1)))
        return to_pcm(sound.reshape(-1)[: len(pcm)])

    def _compressed(self, sound: Samples) -> Samples:
        """Gain at the start of the first step and at the end of each."""
        powers = np.square(sound, dtype=np.float64).mean(axis=1)
        nodes = [self._gain()]
        for power in powers.tolist():
            level_db = 10.0 * math.log10(power) if power > 1e-12 else SILENCE_DBFS
            wanted_db = self._over_db(level_db)
            keep = self._attack if wanted_db > self._reduction_db else self._release
            self._reduction_db = wanted_db + (self._reduction_db - wanted_db) * keep
            nodes.append(self._gain())
        return np.array(nodes, np.float32)

    def _gain(self) -> float:
        return gain_of_db(self._curve.makeup_db - self._reduction_db)

    def _over_db(self, level_db: float) -> float:
        """How much a steady sound of this level is turned down."""
        curve = self._curve
        over_db, half_db = level_db - curve.threshold_db, curve.knee_db / 2.0
        slope = 1.0 - 1.0 / curve.ratio
        if over_db <= -half_db:
            return 0.0
        if over_db < half_db:
            return slope * (over_db + half_db) ** 2 / (2.0 * curve.knee_db)
        return slope * over_db

    def _limited(self, peaks: Samples) -> Samples:
        """Gain at the start of the first step and at the end of each; never over what either neighbour allows."""
        before, limits = self._limit, []
        for peak in peaks.tolist():
            self._limit = min(1.0, self._limit * self._limiter_release, self._ceiling / max(peak, 1e-9))
            limits.append(self._limit)
        ends = [min(one, following) for one, following in zip(limits, [*limits[1:], limits[-1]], strict=True)]
        return np.array([min(before, limits[0]), *ends], np.float32)


def _lines(nodes: Samples) -> Samples:
    """The gain of every sample, step by step: straight lines from node to node."""
    part = np.arange(1, STEP_SAMPLES + 1, dtype=np.float32) / np.float32(STEP_SAMPLES)
    lines: Samples = nodes[:-1, None] + (nodes[1:, None] - nodes[:-1, None]) * part[None, :]
    return lines
