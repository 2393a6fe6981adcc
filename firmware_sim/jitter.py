"""The jitter buffer of one live stream: batches in, samples at their media time out.

Batches are verified against the head's own key before they are kept; they may come late, twice or out of order; what
is missing when it is due is silence (counted), and after a gap the decoder starts anew with 80 ms of warm-up.
Decoding happens at the last moment, in order. The media clock is data: sample m is due at `t0 + m/48 +
playout_delay`, whatever the network did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from firmware_sim.decoder import PACKET_SAMPLES, PREROLL_PACKETS, Chain, DecodeCache
from firmware_sim.trust import Head
from speaker_protocol.frames import FLAG_AFTER_GAP, AudioBatch, FrameRefused, unpack

Pcm = npt.NDArray[np.int16]

SAMPLES_PER_MS: Final = 48
MAX_BATCHES: Final = 256
"""Batches kept before they are due; beyond it the newest is dropped and counted."""
KEEP_SAMPLES: Final = 3 * 48_000
"""Decoded sound kept behind the reading position (a rewind after a changed plan reads it again)."""
EARLY: Final = 8
"""Batches kept unverified until the head is here."""


@dataclass(slots=True)
class StreamCounts:
    """What happened to a stream's batches."""

    received: int = 0
    duplicate: int = 0
    late: int = 0
    refused: int = 0
    dropped: int = 0
    lost: int = 0
    """Batches that never came, by their sequence numbers."""
    delays_ms: deque[float] = field(default_factory=lambda: deque(maxlen=2_000))
    """From the instant a batch's last sample was taken at the source to its arrival, by the node's estimate of time."""


class _Track:
    """The batches of one head."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(head.body.public_key))
        self.waiting: dict[int, AudioBatch] = {}
        self.next_sequence: int | None = None
        self.chain = Chain()
        self.pieces: deque[tuple[int, Pcm]] = deque()
        self.done_until = -1
        """Media sample up to which decoding has been."""

    def end(self) -> int:
        """Media sample up to which there is no hole."""
        sequence = self.next_sequence if self.next_sequence is not None else min(self.waiting, default=0)
        end = self.done_until
        while (batch := self.waiting.get(sequence)) is not None:
            end = batch.media_sample + batch.samples
            sequence += 1
        return end


class StreamReceiver:
    """One stream as one node hears it."""

    def __init__(self, stream: str, cache: DecodeCache, count_refusal: Callable[[str], None]) -> None:
        self.stream = stream
        self.counts = StreamCounts()
        self._cache = cache
        self._count_refusal = count_refusal
        self._tracks: deque[_Track] = deque(maxlen=2)
        self._early: deque[bytes] = deque(maxlen=EARLY)
        self.last_arrival_ns: int | None = None
        self._drop_next = 0

    @property
    def lease_ms(self) -> int:
        """Until when the newest head allows sound; 0 without a head."""
        return self._tracks[-1].head.lease_ms if self._tracks else 0

    def drop(self, count: int) -> None:
        """Lose the next batches before they are seen (a fault)."""
        self._drop_next += count

    def take_head(self, head: Head) -> None:
        """A verified head: a renewed lease, or a restarted process with a new key."""
        track = self._tracks[-1] if self._tracks else None
        if track is not None and track.head.body.public_key == head.body.public_key:
            track.head = head
        else:
            self._tracks.append(_Track(head))
            early, self._early = list(self._early), deque(maxlen=EARLY)
            for raw in early:
                self._file(raw)

    def take_batch(self, raw: bytes, device_ns: int, server_ns: int | None = None) -> None:
        """A batch as it came from the broker at an instant of the device's clock and (if known) of server time."""
        if self._drop_next:
            self._drop_next -= 1
            return
        self.last_arrival_ns = device_ns
        if not self._tracks:
            self._early.append(raw)
            return
        self._file(raw, server_ns)

    def _file(self, raw: bytes, server_ns: int | None = None) -> None:
        found = self._verified(raw)
        if found is None:
            self.counts.refused += 1
            return
        track, batch = found
        if batch.epoch != track.head.epoch:
            self.counts.refused += 1
            self._count_refusal("audio_older")
            return
        self.counts.received += 1
        if server_ns is not None:
            taken_ms = track.head.body.t0_utc_ms + (batch.media_sample + batch.samples) / SAMPLES_PER_MS
            self.counts.delays_ms.append(server_ns / 1e6 - taken_ms)
        if batch.sequence in track.waiting:
            self.counts.duplicate += 1
        elif track.next_sequence is not None and batch.sequence < track.next_sequence:
            self.counts.late += 1
        elif len(track.waiting) >= MAX_BATCHES:
            self.counts.dropped += 1
        else:
            track.waiting[batch.sequence] = batch

    def _verified(self, raw: bytes) -> tuple[_Track, AudioBatch] | None:
        refused = "audio_garbage"
        for track in reversed(self._tracks):
            try:
                return track, unpack(raw, track.key, self.stream)
            except FrameRefused as refusal:
                refused = f"audio_{refusal}"
        self._count_refusal(refused)
        return None

    def forget_before(self, server_ns: int) -> None:
        """Drop what was due before an instant, undecoded (a node without an output verifies, and that is all)."""
        for track in self._tracks:
            position = _position(track, server_ns)
            for sequence in [s for s, batch in track.waiting.items() if batch.media_sample + batch.samples < position]:
                del track.waiting[sequence]
                track.next_sequence = max(sequence + 1, track.next_sequence or 0)

    def is_covered(self, server_ns: int) -> bool:
        """Whether everything up to an instant is here without a hole (as far as sequence numbers tell)."""
        for track in reversed(self._tracks):
            if track.waiting or track.next_sequence is not None:
                return track.end() >= _position(track, server_ns)
        return False

    def has_sound_from(self, server_ns: int) -> bool:
        """Whether anything is buffered for this instant or later."""
        for track in self._tracks:
            position = _position(track, server_ns)
            if any(batch.media_sample + batch.samples > position for batch in track.waiting.values()):
                return True
            if track.pieces and track.pieces[-1][0] + len(track.pieces[-1][1]) > position:
                return True
        return False

    def read(
        self, server_ns: int, samples: int, *, step: float, is_final: bool = True
    ) -> tuple[Pcm, int, npt.NDArray[np.bool_] | None, float]:
        """Source samples for an output of `samples` samples that advances `step` source samples each.

        Answers the source PCM (zeros where nothing came), the media index of its first sample, a mask of what came
        (None: all of it) and the exact media position of the first output sample. The newest head that covers the
        instant wins;
        the head before it speaks until its sound ends. While not `is_final`, a missing batch may still come: nothing
        behind it is decoded yet.
        """
        best: tuple[Pcm, int, npt.NDArray[np.bool_] | None, float] | None = None
        for track in reversed(self._tracks):
            position = _position(track, server_ns)
            low = int(np.floor(position))
            high = int(np.floor(position + step * samples)) + 2
            self._decode_until(track, high, is_final=is_final)
            pcm, mask = _gather(track, low, high)
            answer = (pcm, low, mask, position)
            if mask is None:
                return answer
            if best is None or (best[2] is not None and mask.sum() > best[2].sum()):
                best = answer
        if best is None:
            return np.zeros(samples + 2, np.int16), 0, np.zeros(samples + 2, np.bool_), 0.0
        return best

    def _decode_until(self, track: _Track, high: int, *, is_final: bool) -> None:
        while track.waiting and track.done_until < high:
            sequence = min(track.waiting)
            batch = track.waiting[sequence]
            if batch.media_sample >= high:
                return
            expected = track.next_sequence
            if expected is not None and sequence > expected:
                if not is_final:
                    return
                self.counts.lost += sequence - expected
            del track.waiting[sequence]
            track.next_sequence = sequence + 1
            track.done_until = batch.media_sample + batch.samples
            is_fresh = expected is None or sequence != expected or not track.chain.digest
            if is_fresh:
                track.chain = Chain()
            pcm = self._cache.decode(track.chain, batch.packets)
            start = batch.media_sample
            clean_start = batch.media_sample == 0 or (expected is None and bool(batch.flags & FLAG_AFTER_GAP))
            if is_fresh and not clean_start:
                warm_up = min(PREROLL_PACKETS * PACKET_SAMPLES, len(pcm))
                start, pcm = start + warm_up, pcm[warm_up:]
            if len(pcm):
                track.pieces.append((start, pcm))
        while track.pieces and track.pieces[0][0] + len(track.pieces[0][1]) < high - KEEP_SAMPLES:
            track.pieces.popleft()


def _position(track: _Track, server_ns: int) -> float:
    body = track.head.body
    return (server_ns - (body.t0_utc_ms + body.playout_delay_ms) * 1_000_000) * 48e-6


def _gather(track: _Track, low: int, high: int) -> tuple[Pcm, npt.NDArray[np.bool_] | None]:
    for start, pcm in track.pieces:
        if start <= low and high <= start + len(pcm):
            return pcm[low - start : high - start], None
    out = np.zeros(high - low, np.int16)
    mask = np.zeros(high - low, np.bool_)
    for start, pcm in track.pieces:
        a, b = max(low, start), min(high, start + len(pcm))
        if a < b:
            out[a - low : b - low] = pcm[a - start : b - start]
            mask[a - low : b - low] = True
    return out, None if mask.all() else mask
