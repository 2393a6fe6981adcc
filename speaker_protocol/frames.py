"""The audio batch of a live stream: a fixed header, raw Opus packets of 20 ms, a signature of the stream's own key.

The header is data (`FIELDS`); the document's table is printed from it. A packet is prefixed by its length (2 bytes);
length 0 says "no packet": the decoder conceals it. Media time counts samples at 48 kHz since the stream's `t0_utc_ms`,
so sample m is due at `t0_utc_ms + m/48 + playout_delay_ms` on every node, whatever the network did.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from speaker_protocol import FORMAT_VERSION
from speaker_protocol.signing import SIGNATURE_BYTES, HeaderField

SAMPLE_RATE_HZ: Final = 48_000
PACKET_SAMPLES: Final = 960
MAX_PACKETS: Final = 250
_SEPARATION: Final = b"loa/1 AUDIO\0"

FIELDS: Final = (
    HeaderField("version", "B", "format version"),
    HeaderField("flags", "B", "bit 0: first batch after a gap in the source; bit 1: last batch of the stream"),
    HeaderField("epoch", "I", "the epoch of the stream's head"),
    HeaderField("sequence", "I", "rises by one with every batch of one head"),
    HeaderField("media_sample", "Q", "index at 48 kHz, since the stream's t0, of the first sample of the first packet"),
    HeaderField("packets", "B", "how many Opus packets of 20 ms follow, each after its length in 2 bytes"),
)
HEADER: Final = struct.Struct(">" + "".join(part.code for part in FIELDS))
_LENGTH: Final = struct.Struct(">H")

FLAG_AFTER_GAP: Final = 1
FLAG_LAST: Final = 2


class FrameRefused(ValueError):  # noqa: N818 - reads as what happened, like the counters
    """The batch is not to be sounded; the text is the counted reason: garbage, signature."""


@dataclass(frozen=True, slots=True)
class AudioBatch:
    """One batch as sent: raw Opus packets from `media_sample` on. An empty packet stands for 20 ms to conceal."""

    epoch: int
    sequence: int
    media_sample: int
    packets: tuple[bytes, ...]
    flags: int = 0

    @property
    def samples(self) -> int:
        """Its length in samples at 48 kHz."""
        return len(self.packets) * PACKET_SAMPLES


def pack(batch: AudioBatch, key: Ed25519PrivateKey, stream: str) -> bytes:
    """The batch's bytes, signed for `stream` (its id is signed, not sent)."""
    if not 1 <= len(batch.packets) <= MAX_PACKETS:
        raise ValueError(f"a batch holds 1 to {MAX_PACKETS} packets")
    head = HEADER.pack(FORMAT_VERSION, batch.flags, batch.epoch, batch.sequence, batch.media_sample, len(batch.packets))
    signed = head + b"".join(_LENGTH.pack(len(packet)) + packet for packet in batch.packets)
    return signed + key.sign(_separated(stream) + signed)


def unpack(raw: bytes, key: Ed25519PublicKey, stream: str) -> AudioBatch:
    """The batch, verified. Raises `FrameRefused`; never reads past what was sent."""
    if len(raw) < HEADER.size + SIGNATURE_BYTES:
        raise FrameRefused("garbage")
    signed, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    try:
        key.verify(signature, _separated(stream) + signed)
    except InvalidSignature:
        raise FrameRefused("signature") from None
    version, flags, epoch, sequence, media_sample, count = HEADER.unpack_from(signed)
    if version != FORMAT_VERSION or not 1 <= count <= MAX_PACKETS:
        raise FrameRefused("garbage")
    return AudioBatch(epoch, sequence, media_sample, _packets(signed, count), flags)


def _packets(signed: bytes, count: int) -> tuple[bytes, ...]:
    packets = []
    at = HEADER.size
    for _ in range(count):
        if at + _LENGTH.size > len(signed):
            raise FrameRefused("garbage")
        (length,) = _LENGTH.unpack_from(signed, at)
        at += _LENGTH.size
        if at + length > len(signed):
            raise FrameRefused("garbage")
        packets.append(signed[at : at + length])
        at += length
    if at != len(signed):
        raise FrameRefused("garbage")
    return tuple(packets)


def _separated(stream: str) -> bytes:
    return _SEPARATION + stream.encode("utf-8") + b"\0"
