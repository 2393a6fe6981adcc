"""A batch is sounded only if the stream's own key signed it for this stream, whole."""

from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from speaker_protocol.frames import HEADER, MAX_PACKETS, AudioBatch, FrameRefused, pack, unpack

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
BATCH = AudioBatch(epoch=3, sequence=9, media_sample=96_000, packets=(b"one", b"", b"three"), flags=1)


def refusal(raw: bytes, key: Ed25519PrivateKey = KEY, stream: str = "s") -> str:
    with pytest.raises(FrameRefused) as refused:
        unpack(raw, key.public_key(), stream)
    return str(refused.value)


def signed(head: bytes, rest: bytes) -> bytes:
    return head + rest + KEY.sign(b"loa/1 AUDIO\0s\0" + head + rest)


def test_a_batch_comes_out_as_it_went_in():
    assert unpack(pack(BATCH, KEY, "s"), KEY.public_key(), "s") == BATCH


def test_another_key_another_stream_and_another_byte_are_no_batch():
    raw = pack(BATCH, KEY, "s")
    assert refusal(raw, OTHER) == "signature"
    assert refusal(raw, stream="t") == "signature"
    assert refusal(raw[:40] + b"\0" + raw[41:]) == "signature"
    assert refusal(raw[:60]) == "garbage"
    assert refusal(b"") == "garbage"


@pytest.mark.parametrize(
    ("version", "count", "rest"),
    [
        (9, 1, b"\0\1x"),
        (1, 0, b""),
        (1, MAX_PACKETS + 1, b"\0\0" * (MAX_PACKETS + 1)),
        (1, 2, b"\0\1x"),
        (1, 1, b"\0\1xy"),
        (1, 1, b"\xff\xffx"),
        (1, 1, b"\0"),
    ],
    ids=["version", "none", "too many", "one missing", "one more", "a length that lies", "half a length"],
)
def test_a_signed_batch_that_is_none_is_garbage(version: int, count: int, rest: bytes):
    assert refusal(signed(HEADER.pack(version, 0, 1, 1, 0, count), rest)) == "garbage"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_nothing_signed_raises_anything_but_a_refusal(rest: bytes):
    count = 1 + len(rest) % 4
    raw = signed(HEADER.pack(1, 0, 1, 1, 0, count), rest)
    try:
        batch = unpack(raw, KEY.public_key(), "s")
    except FrameRefused:
        return
    assert len(batch.packets) == count
    assert b"".join(struct.pack(">H", len(one)) + one for one in batch.packets) == rest
