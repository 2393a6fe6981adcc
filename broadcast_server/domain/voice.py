"""A live voice as numbers: what a microphone may send, in what order it counts, and what is told of it.

A maintainer must not break: (1) every packet that arrives is counted once, as what became of it; (2) a number is given
up only after `reorder` later ones have come, and never used again; (3) nothing here knows sockets, sound or a clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class VoiceFormat(StrEnum):
    """What a browser's microphone sends."""

    OPUS = "opus"
    """Raw Opus packets of 20 ms (WebCodecs)."""
    WEBM = "webm"
    """Chunks of WebM with Opus (MediaRecorder)."""
    MP4 = "mp4"
    """Fragments of MP4 with AAC (MediaRecorder of Safari)."""


@dataclass(frozen=True, slots=True)
class VoiceLimits:
    """What is taken from a microphone, as data."""

    packet_bytes: int = 1_500
    packets_per_s: float = 60.0
    packets_burst: int = 250
    """Five seconds of packets, which a phone may have kept while it had no network."""
    chunk_bytes: int = 64 * 1024
    bytes_per_s: float = 40_000.0
    bytes_burst: int = 256 * 1024
    ahead: int = 500
    """So far a number may lie ahead of the one expected."""
    reorder: int = 4
    """After so many later packets a missing one is given up."""
    refusals: int = 200
    """So many refused packets end the session's socket."""
    silent_s: float = 5.0
    """Without a packet or a renewal for so long the voice is over."""
    connect_s: float = 15.0
    """So long a fresh session waits for its microphone: the browser asks the person first."""


USUAL_LIMITS: Final = VoiceLimits()


@dataclass(slots=True)
class VoiceCounts:
    """What became of what a microphone sent."""

    taken: int = 0
    lost: int = 0
    """Numbers that never came."""
    duplicate: int = 0
    late: int = 0
    """Came after they had been given up."""
    refused: int = 0
    """Too long, too many, out of the window, or not what it said it was."""
    dropped: int = 0
    """Frames of 20 ms given away because there was too much at once; the oldest."""
    filled: int = 0
    """Frames of comfort silence while nothing came."""
    skipped: int = 0
    """Frames of a pause left out to catch up."""


@dataclass(frozen=True, slots=True)
class VoiceState:
    """How a voice is. `acknowledged`: the last number taken in order, −1 for none."""

    acknowledged: int
    level_dbfs: float
    heard_ms: int
    """How much has gone out, comfort silence included."""
    is_connected: bool
    is_recorded: bool
    """False once the disk took no more: the voice goes on all the same."""
    counts: VoiceCounts


@dataclass(slots=True)
class Bucket:
    """A token bucket: `rate` a second, at most `size` in hand."""

    rate: float
    size: float
    _left: float = field(default=-1.0)
    _at_s: float = 0.0

    def take(self, amount: float, now_s: float) -> bool:
        """Whether so much may pass now; what may not costs nothing."""
        if self._left < 0:
            self._left, self._at_s = self.size, now_s
        self._left = min(self.size, self._left + (now_s - self._at_s) * self.rate)
        self._at_s = now_s
        if amount > self._left:
            return False
        self._left -= amount
        return True


@dataclass(frozen=True, slots=True)
class Gap:
    """So many numbers in a row never came."""

    packets: int


class Sequencer:
    """Puts packets in the order of their numbers; what comes twice or too late is counted and forgotten."""

    def __init__(self, counts: VoiceCounts, *, reorder: int, ahead: int) -> None:
        self.next: int | None = None
        """The number expected; None before the first packet, which may have any."""
        self._counts, self._reorder, self._ahead = counts, reorder, ahead
        self._held: dict[int, bytes] = {}
        self._given_up: deque[int] = deque(maxlen=1_000)

    def take(self, sequence: int, payload: bytes) -> list[bytes | Gap]:
        """What may be used now, in order; often just this payload."""
        if self.next is None:
            self.next = sequence
        if sequence < self.next:
            if sequence in self._given_up:
                self._counts.late += 1
            else:
                self._counts.duplicate += 1
            return []
        if sequence in self._held:
            self._counts.duplicate += 1
            return []
        if sequence - self.next > self._ahead:
            self._counts.refused += 1
            return []
        self._counts.taken += 1
        self._held[sequence] = payload
        return self._ready(self.next)

    def _ready(self, expected: int) -> list[bytes | Gap]:
        found: list[bytes | Gap] = []
        while self._held:
            payload = self._held.pop(expected, None)
            if payload is not None:
                found.append(payload)
                expected += 1
            elif len(self._held) > self._reorder:
                coming = min(self._held)
                self._counts.lost += coming - expected
                self._given_up.extend(range(expected, coming))
                found.append(Gap(coming - expected))
                expected = coming
            else:
                break
        self.next = expected
        return found
