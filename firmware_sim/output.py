"""The sound card, the horn behind it, and the microphone in front: the only files that know true time as well as the
node's.

`Dac` consumes samples at 48 000 x crystal rate per true second whether or not any are there: a dry buffer is an
underrun and sounds as silence. `Recorder` writes what left the horn on the *true* clock: sample k of NODE.wav is what
sounded at `sample0_utc_ns + k/48 000 s`, gaps are zeros. Nothing here asks a scheduler anything.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from firmware_sim.clock import SECOND, DeviceClock, TrueTime
from firmware_sim.player import Chunk, Sounding, Tag, ramp_down, ramp_up, resample
from speaker_protocol.rules import Why

Pcm = npt.NDArray[np.int16]

SAMPLE_RATE_HZ: Final = 48_000
_HEADER_BYTES: Final = 44


@dataclass(slots=True)
class Played:
    """Samples that have sounded (or should have)."""

    chunk: Chunk
    is_underrun: bool = False
    power: float = 0.0
    """Sum of squares that left the horn."""
    is_heard: bool = False
    """Whether the horn gave what it was given (digital silence in, silence out, counts as given)."""


class Horn:
    """Amplifier and horn. `is_dead` is the fault nobody sees on the network."""

    def __init__(self) -> None:
        self.is_dead = False

    def sound(self, chunk: Chunk) -> tuple[Pcm | None, float, bool]:
        """What leaves the horn, its power, and whether it is what was put in."""
        pcm = chunk.pcm
        if pcm is None:
            return None, 0.0, True
        wave = pcm.astype(np.float32)
        power = float(np.dot(wave, wave))
        if self.is_dead:
            return None, 0.0, power == 0.0
        return pcm, power, True


class Recorder:
    """A microphone in front of the horn: NODE.wav and NODE.json, on true time."""

    def __init__(self, folder: Path, node_id: str, cluster_id: str, sample0_utc_ns: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.sample0_utc_ns = sample0_utc_ns
        self._written = 0
        self._tail = np.zeros(1, np.int16)
        self._tail_end_ns = -1.0
        self._file = (folder / f"{node_id}.wav").open("wb", buffering=0)
        self._file.write(_wav_header(0))
        (folder / f"{node_id}.json").write_text(
            json.dumps(
                {
                    "node_id": node_id,
                    "cluster_id": cluster_id,
                    "sample0_utc_ns": sample0_utc_ns,
                    "sample_rate_hz": SAMPLE_RATE_HZ,
                    "channels": 1,
                    "bits": 16,
                }
            )
        )

    def write(self, pcm: Pcm | None, samples: int, first_true_ns: float, rate: float) -> None:
        """Samples of the sound card, the first at a true instant, `rate` x 48 000 of them a true second."""
        per_ns = SAMPLE_RATE_HZ * 1e-9
        step_ns = 1.0 / (per_ns * rate)
        end_ns = first_true_ns + samples * step_ns
        is_next = abs(first_true_ns - self._tail_end_ns) < step_ns
        self._tail_end_ns = end_ns
        if pcm is None:
            self._tail[0] = 0
            return
        # Positions of the recording's samples between the last sample of the block before and the last of this one.
        start = (first_true_ns - self.sample0_utc_ns) * per_ns - (1.0 / rate if is_next else 0.0)
        last = (end_ns - step_ns - self.sample0_utc_ns) * per_ns
        low, high = max(0, int(np.ceil(start))), int(np.ceil(last))
        if high > low:
            block = np.concatenate([self._tail, pcm]) if is_next else pcm
            wave = resample(block, (low - start) * rate, rate, high - low)
            os.pwrite(self._file.fileno(), np.rint(wave).astype("<i2").tobytes(), _HEADER_BYTES + 2 * low)
            self._written = max(self._written, high)
        self._tail = pcm[-1:].copy()

    def close(self, until_true_ns: int) -> None:
        """Make it a whole WAV that lasts until a true instant. Idempotent."""
        if self._file.closed:
            return
        count = max(self._written, round((until_true_ns - self.sample0_utc_ns) * SAMPLE_RATE_HZ / SECOND))
        self._file.truncate(_HEADER_BYTES + 2 * count)
        self._file.seek(0)
        self._file.write(_wav_header(2 * count))
        self._file.close()


def _wav_header(data_bytes: int) -> bytes:
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + data_bytes,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        SAMPLE_RATE_HZ,
        SAMPLE_RATE_HZ * 2,
        2,
        16,
        b"data",
        data_bytes,
    )


class Dac:
    """A sound card on the device's crystal, from one power-on to the next power-off."""

    def __init__(
        self,
        clock: DeviceClock,
        true: TrueTime,
        horn: Horn,
        recorder: Recorder | None,
        on_played: Callable[[Played], None],
    ) -> None:
        self._clock = clock
        self._true = true
        self._horn = horn
        self._recorder = recorder
        self._on_played = on_played
        self._start_ns = true.now_ns()
        self._pending: deque[Chunk] = deque()
        self._played = 0
        self._queued = 0
        self._last: Chunk | None = None
        self.underruns = 0

    @property
    def cursor(self) -> int:
        """Index of the next sample to be queued."""
        return self._queued

    def ahead_s(self) -> float:
        """How long what is queued lasts."""
        return (self._queued - self._position(self._true.now_ns())) / SAMPLE_RATE_HZ

    def _position(self, true_ns: int) -> float:
        return (true_ns - self._start_ns) * self._clock.rate * SAMPLE_RATE_HZ / SECOND

    def device_ns(self, sample: int) -> int:
        """When a sample sounds, by the device's clock (as a sound card's time stamp tells a driver)."""
        true_ns = self._true.now_ns()
        # Card and clock run on one crystal, so the distance between two samples is exact on the device's clock.
        return self._clock.at(true_ns) + round((sample - self._position(true_ns)) * SECOND / SAMPLE_RATE_HZ)

    def queue(self, chunk: Chunk) -> None:
        """Append to the buffer."""
        self._pending.append(chunk)
        self._queued += chunk.samples

    def last_queued(self) -> Chunk | None:
        """What a next chunk follows, if it has not sounded yet."""
        return self._pending[-1] if self._pending else None

    def rewind(self, keep_s: float) -> bool:
        """Forget what is queued beyond `keep_s` from now, ramped down where it is cut; whether anything was."""
        keep = round(self._position(self._true.now_ns()) + keep_s * SAMPLE_RATE_HZ)
        if self._queued <= keep:
            return False
        while self._pending and self._queued - self._pending[-1].samples >= keep:
            self._queued -= self._pending.pop().samples
        if self._pending and self._queued > keep:
            cut = self._pending.pop()
            stays = cut.samples - (self._queued - keep)
            head = _split(cut, stays)[0]
            self._pending.append(head)
            self._queued = keep
        return True

    def run(self, *, is_last: bool = False) -> None:
        """Let the card catch up with true time: every chunk that is over has sounded, or should have.

        `is_last`: the power goes now, so the chunk in the middle of which it goes sounds up to here.
        """
        due = int(self._position(self._true.now_ns()))
        while self._played < due:
            if not self._pending:
                self._run_dry(due - self._played)
                return
            if self._played + self._pending[0].samples <= due:
                self._sound(self._pending.popleft())
            elif is_last:
                self._sound(_split(self._pending.popleft(), due - self._played)[0])
            else:
                return

    def _run_dry(self, samples: int) -> None:
        last = self._last
        tag = last.tag if last is not None else None
        if last is not None and last.kind is not Sounding.SILENCE:
            self.underruns += 1
            server_ns = last.server_ns + round(last.samples * SECOND / SAMPLE_RATE_HZ)
            gap = Chunk(samples, server_ns, Sounding.HOLE, last.why, tag)
            self._on_played(Played(gap, is_underrun=True))
            self._last = replace(gap, kind=Sounding.SILENCE)
        if self._recorder is not None:
            self._recorder.write(None, samples, self._true_ns(self._played), self._clock.rate)
        self._played += samples
        self._queued = self._played

    def _true_ns(self, sample: int) -> float:
        return self._start_ns + sample * SECOND / (SAMPLE_RATE_HZ * self._clock.rate)

    def _sound(self, chunk: Chunk) -> None:
        pcm, power, is_heard = self._horn.sound(chunk)
        if self._recorder is not None:
            self._recorder.write(pcm, chunk.samples, self._true_ns(self._played), self._clock.rate)
        self._played += chunk.samples
        self._last = chunk
        self._on_played(Played(chunk, power=power, is_heard=is_heard and chunk.kind is Sounding.SOUND))


def silence(samples: int, server_ns: int, why: Why, tag: Tag | None = None) -> Chunk:
    """A chunk of nothing."""
    return Chunk(samples, server_ns, Sounding.SILENCE, why, tag)


def _split(chunk: Chunk, at: int) -> tuple[Chunk, Chunk]:
    pcm = chunk.pcm
    tail_ns = chunk.server_ns + round(at * SECOND / SAMPLE_RATE_HZ)
    head = replace(chunk, samples=at, pcm=None if pcm is None else pcm[:at], ends_softly=False)
    return head, replace(chunk, samples=chunk.samples - at, server_ns=tail_ns, pcm=None if pcm is None else pcm[at:])


def join(before: Chunk | None, after: Chunk) -> None:
    """Ramp down what is cut off by a chunk of another segment or kind, and ramp up what begins in its middle."""
    is_same = (
        before is not None
        and before.kind is Sounding.SOUND
        and after.kind is Sounding.SOUND
        and before.tag is not None
        and after.tag is not None
        and before.tag.key == after.tag.key
    )
    if is_same:
        return
    if before is not None and before.pcm is not None and not before.ends_softly:
        before.pcm = before.pcm.copy()
        ramp_down(before.pcm)
        before.ends_softly = True
    if after.pcm is not None and after.is_inside:
        ramp_up(after.pcm)
