"""Opus to PCM: assets by stretches, live streams with one decoder each.

A fresh Opus decoder is wrong for its first 80 ms (measured: 2-14 dB SNR), so a decoder is kept for as long as packets
follow one another, and after a gap the first 80 ms only warm it up. What the nodes of one process share is a pure
function of bytes each of them has verified itself: decoded stretches of an asset by its hash (`SoundLibrary`), and
decoded batches by the whole chain of packets since the decoder was new (`DecodeCache`), which is what a decoder's
output depends on.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol, TypeVar, cast

import av
import numpy as np
import numpy.typing as npt

Pcm = npt.NDArray[np.int16]
T = TypeVar("T")

SAMPLE_RATE_HZ: Final = 48_000
PACKET_SAMPLES: Final = 960
PREROLL_PACKETS: Final = 4
"""80 ms of packets that warm a new decoder up."""
STRETCH_SAMPLES: Final = 5 * SAMPLE_RATE_HZ
_SEEK_BACK: Final = 2 * SAMPLE_RATE_HZ


class Offload(Protocol):
    """Runs what would block the loop; a thread in a real run, inline on virtual time."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]:
        """Its result."""
        ...


class NotAudio(ValueError):  # noqa: N818 - reads as what happened
    """The file passed its hash but cannot be decoded."""


class AssetSound:
    """PCM of one asset, decoded in stretches of 5 s shortly before they are needed, from bytes that were checked."""

    def __init__(self, library: SoundLibrary) -> None:
        self.content: bytes | None = None
        """The asset's bytes, as somebody hashed them; None when they were dropped and must be given again."""
        self._library = library
        self._stretches: OrderedDict[int, Pcm] = OrderedDict()
        self._length: int | None = None
        self._wanted: set[int] = set()
        self.is_broken = False
        self._source: av.container.InputContainer | None = None
        self._frames: _Frames | None = None

    @property
    def length(self) -> int | None:
        """Its length in samples, once its end was decoded."""
        return self._length

    def read(self, low: int, high: int) -> Pcm | None:
        """Samples `[low, high)`, zeros beyond either end; None if a stretch of it is not decoded yet."""
        parts: list[Pcm] = []
        at = low
        if at < 0:
            parts.append(np.zeros(min(-at, high - low), np.int16))
            at = min(0, high)
        while at < high:
            if self._length is not None and at >= self._length:
                parts.append(np.zeros(high - at, np.int16))
                break
            index, inside = divmod(at, STRETCH_SAMPLES)
            stretch = self._stretches.get(index)
            if stretch is None:
                return None
            part = stretch[inside : inside + high - at]
            if not len(part):
                parts.append(np.zeros(high - at, np.int16))
                break
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.int16)

    def is_ready(self, low: int, high: int) -> bool:
        """Whether `read` would answer."""
        return all(index in self._stretches for index in self._indices(low, high))

    def _indices(self, low: int, high: int) -> range:
        end = high if self._length is None else min(high, self._length)
        return range(max(0, low) // STRETCH_SAMPLES, max(0, end - 1) // STRETCH_SAMPLES + 1) if end > low else range(0)

    async def prepare(self, low: int, high: int) -> None:
        """Decode what `[low, high)` needs. A node that asks for what another is decoding does not wait for it."""
        for index in self._indices(low, high):
            content = self.content
            if index in self._stretches or index in self._wanted or self.is_broken or content is None:
                continue
            if self._length is not None and index * STRETCH_SAMPLES >= self._length:
                return
            self._wanted.add(index)
            try:
                stretch, length = await self._library.offload(partial(self._decode, content, index))
            except (NotAudio, av.FFmpegError, OSError):
                self.is_broken = True
                return
            finally:
                self._wanted.discard(index)
            if length is not None:
                self._length = length
            self._stretches[index] = stretch
            self._library.account(self, index, stretch.nbytes)

    def forget(self, index: int) -> None:
        """Drop a stretch (the library needs room)."""
        self._stretches.pop(index, None)

    def _decode(self, content: bytes, index: int) -> tuple[Pcm, int | None]:
        low, high = index * STRETCH_SAMPLES, (index + 1) * STRETCH_SAMPLES
        with self._library.lock:
            frames = self._frames
            if frames is None or not frames.follows(low):
                if frames is not None:
                    frames.close()
                frames = self._frames = _Frames(content, low)
            return frames.take(low, high)

    def close(self) -> None:
        """Let go of the decoder."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None


class _Frames:
    """A container read forward from about one position."""

    def __init__(self, content: bytes, low: int) -> None:
        self._container = av.open(io.BytesIO(content), "r", format="ogg")
        audio = self._container.streams.audio
        if not audio:
            self._container.close()
            raise NotAudio("no audio stream")
        self._stream = audio[0]
        start = self._stream.start_time or 0
        if low > _SEEK_BACK:
            self._container.seek(start + low - _SEEK_BACK, stream=self._stream)
        self._decoded = self._container.decode(self._stream)
        self._left = np.zeros(0, np.int16)
        self._at = -1
        self._first_pts = 0
        self._is_over = False

    def follows(self, low: int) -> bool:
        return self._at >= 0 and self._at <= low < self._at + _SEEK_BACK

    def take(self, low: int, high: int) -> tuple[Pcm, int | None]:
        parts = [self._left] if len(self._left) else []
        at = self._at
        have = len(self._left)
        while not self._is_over and (at < 0 or at + have < high):
            frame = next(self._decoded, None)
            if frame is None:
                self._is_over = True
                break
            if at < 0:
                # libav takes Ogg Opus's priming samples off; the first frame says where it is.
                at = max(0, frame.pts or 0)
            part = mono(frame)
            parts.append(part)
            have += len(part)
        pcm = np.concatenate(parts) if parts else np.zeros(0, np.int16)
        at = max(at, 0)
        skip = max(0, low - at)
        wanted = pcm[skip : skip + high - low].copy()
        self._left = pcm[skip + len(wanted) :].copy()
        self._at = at + skip + len(wanted)
        return wanted, (low + len(wanted) if self._is_over and not len(self._left) else None)

    def close(self) -> None:
        self._container.close()


def mono(frame: av.AudioFrame) -> Pcm:
    """A decoded frame as 16-bit mono."""
    samples = frame.to_ndarray()
    if samples.dtype == np.int16:
        flat = samples.reshape(-1)
    else:
        flat = np.clip(np.rint(samples.astype(np.float32) * 32767.0), -32768, 32767).astype(np.int16)
        flat = flat.mean(axis=0).astype(np.int16) if flat.shape[0] > 1 else flat.reshape(-1)
    return cast("Pcm", flat)


class SoundLibrary:
    """Decoded stretches of the assets of this process's nodes, the least used ones dropped beyond a bound."""

    def __init__(
        self, offload: Offload, *, keep_bytes: int = 192 * 1024 * 1024, keep_content_bytes: int = 96 * 1024 * 1024
    ) -> None:
        import threading  # noqa: PLC0415  (only this lock: stretches are decoded in a worker thread)

        self.offload = offload
        self.lock = threading.Lock()
        self._keep_bytes = keep_bytes
        self._keep_content_bytes = keep_content_bytes
        self._held_bytes = 0
        self._held: OrderedDict[tuple[int, int], tuple[AssetSound, int]] = OrderedDict()
        self._sounds: dict[str, AssetSound] = {}

    def sound(self, sha256: str) -> AssetSound:
        """The sound of an asset; it decodes once it was given the bytes."""
        found = self._sounds.get(sha256)
        if found is None:
            found = self._sounds[sha256] = AssetSound(self)
        return found

    def give(self, sha256: str, content: bytes) -> AssetSound:
        """The bytes of an asset, which the caller has hashed. Those given longest ago are dropped beyond a bound."""
        sound = self.sound(sha256)
        sound.content = content
        self._sounds[sha256] = self._sounds.pop(sha256)
        held = sum(len(other.content) for other in self._sounds.values() if other.content is not None)
        for other in self._sounds.values():
            if held <= self._keep_content_bytes or other is sound:
                break
            if other.content is not None:
                held -= len(other.content)
                other.content = None
        return sound

    def account(self, sound: AssetSound, index: int, size_bytes: int) -> None:
        """A stretch was decoded; make room if needed."""
        self._held[id(sound), index] = (sound, size_bytes)
        self._held_bytes += size_bytes
        while self._held_bytes > self._keep_bytes and len(self._held) > 1:
            (_, old_index), (old, freed) = self._held.popitem(last=False)
            old.forget(old_index)
            self._held_bytes -= freed

    def close(self) -> None:
        """Let go of every decoder."""
        for sound in self._sounds.values():
            sound.close()
        self._sounds.clear()


def opus_head(channels: int = 1) -> bytes:
    """An identification header (RFC 7845 §5.1) with no pre-skip: a stream's media time counts every sample."""
    return struct.pack("<8sBBHIhB", b"OpusHead", 1, channels, 0, SAMPLE_RATE_HZ, 0, 0)


class StreamDecoder:
    """libopus for one uninterrupted run of packets."""

    def __init__(self) -> None:
        context = av.CodecContext.create("libopus", "r")
        context.extradata = opus_head()
        context.sample_rate = SAMPLE_RATE_HZ
        context.layout = "mono"
        self._context = context

    def decode(self, packet: bytes) -> Pcm:
        """20 ms; zeros for a packet that is missing or broken."""
        if packet:
            try:
                frames = self._context.decode(av.Packet(packet))
            except av.FFmpegError:
                frames = []
            if frames:
                samples = np.concatenate([mono(frame) for frame in frames])
                if len(samples) == PACKET_SAMPLES:
                    return samples
        return np.zeros(PACKET_SAMPLES, np.int16)


class Chain:
    """Where one receiver's decoding stands: the digest of every packet since its decoder was new."""

    def __init__(self) -> None:
        self.digest = b""
        self.tail: tuple[bytes, ...] = ()

    def next(self, packets: tuple[bytes, ...]) -> bytes:
        """The digest after these packets."""
        digest = hashlib.sha256(self.digest)
        for packet in packets:
            digest.update(struct.pack(">H", len(packet)))
            digest.update(packet)
        return digest.digest()


class DecodeCache:
    """Decoded batches by chain: nodes that received the same packets in the same order need one decoder between them.

    A node whose chain differs (it lost a batch) has a decoder of its own from there on.
    """

    def __init__(self, *, keep: int = 96) -> None:
        self._keep = keep
        self._pcm: OrderedDict[bytes, Pcm] = OrderedDict()
        self._decoders: OrderedDict[bytes, StreamDecoder] = OrderedDict()
        self.decoded = 0

    def decode(self, chain: Chain, packets: tuple[bytes, ...]) -> Pcm:
        """PCM of the packets that follow the chain; the chain moves on."""
        digest = chain.next(packets)
        pcm = self._pcm.get(digest)
        if pcm is None:
            decoder = self._decoders.pop(chain.digest, None) if chain.digest else None
            if decoder is None:
                decoder = StreamDecoder()
                for packet in chain.tail:  # another chain has the decoder that stood here: warm up a new one
                    decoder.decode(packet)
            pcm = np.concatenate([decoder.decode(packet) for packet in packets])
            pcm.flags.writeable = False
            self.decoded += 1
            self._pcm[digest] = pcm
            self._decoders[digest] = decoder
            while len(self._pcm) > self._keep:
                self._pcm.popitem(last=False)
            while len(self._decoders) > self._keep:
                self._decoders.popitem(last=False)
        chain.digest = digest
        chain.tail = (chain.tail + packets)[-PREROLL_PACKETS:]
        return pcm
