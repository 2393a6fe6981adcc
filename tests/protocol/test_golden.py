"""Bytes that left the house once stay readable for ever: both sides are held to files, not to each other.

The files under `golden/` were written by version 1. A change that makes this test fail changes the wire: raise the
format version and keep reading the old bytes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from speaker_protocol import chain
from speaker_protocol.frames import AudioBatch, pack, unpack
from speaker_protocol.messages import (
    DelegationBody,
    FloorsBody,
    PlanHead,
    decode,
    decode_ack,
    join_keys,
    open_plan_body,
    split_keys,
    split_plan,
)
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import Envelope, KeyRing, Kind, KnownKey, Watermarks, key_id_of, seal

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "facts.json").read_text("utf-8"))
ROOT = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
COMMUNE = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
AUTHORITY = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
DAY_MS = 86_400_000


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_the_golden_plan_is_still_obeyed():
    envelope_raw, packed = split_plan((GOLDEN / "plan.bin").read_bytes())
    ring = KeyRing(public(ROOT))
    ring.learn(KnownKey(public(COMMUNE), "xa-1", frozenset({Kind.PLAN}), "emergency", 0, 1 << 60))
    envelope = ring.verify(
        envelope_raw, kind=Kind.PLAN, target="node-1", path=("xa-1",), now_ms=FACTS["issued_ms"] + 1_000
    )
    body = open_plan_body(decode(PlanHead, envelope.body), packed)
    assert [segment.entry_id for segment in body.segments] == FACTS["entries"]
    assert envelope.order == (3, 7)


def test_the_same_envelope_is_still_written_to_the_same_bytes():
    written, _ = split_plan((GOLDEN / "plan.bin").read_bytes())
    again = seal(
        COMMUNE,
        key_id_of(public(COMMUNE)),
        kind=Kind.PLAN,
        target="node-1",
        issued_ms=FACTS["issued_ms"],
        expires_ms=FACTS["expires_ms"],
        epoch=3,
        sequence=7,
        body=FACTS["head"].encode(),
    )
    assert again == written, "Ed25519 is deterministic: other bytes mean another wire"


def learned() -> tuple[KeyRing, list[Envelope]]:
    """What a node makes of the golden statements about keys."""
    ring, marks, now_ms = KeyRing(public(ROOT)), Watermarks(), FACTS["issued_ms"] + 1_000
    raws = split_keys((GOLDEN / "keys.bin").read_bytes())
    return ring, [chain.take(ring, marks, raw, above=("xa-1", "tinh-1"), now_ms=now_ms)[0] for raw in raws]


def test_the_golden_chain_of_keys_is_still_learned_and_speaks():
    ring, envelopes = learned()
    assert [envelope.target for envelope in envelopes] == ["*", "*", "*", "xa-1"]
    assert ring.rl_version == 4
    plan, _ = split_plan((GOLDEN / "plan.bin").read_bytes())
    now_ms = FACTS["issued_ms"] + 1_000
    assert ring.verify(plan, kind=Kind.PLAN, target="node-1", path=("xa-1", "tinh-1"), now_ms=now_ms).order == (3, 7)
    raw = (GOLDEN / "floors.bin").read_bytes()
    floors = ring.verify(raw, kind=Kind.ACK, target="node-1", path=("xa-1", "tinh-1"), now_ms=now_ms)
    told = decode_ack(floors.body)
    assert isinstance(told, FloorsBody)
    assert [(one.topic, one.epoch, one.sequence) for one in told.floors] == [("loa/1/node/node-1/plan", 3, 7)]


def test_the_same_statement_about_keys_is_still_written_to_the_same_bytes():
    now_ms, (raw, *_) = FACTS["issued_ms"], split_keys((GOLDEN / "keys.bin").read_bytes())
    body = DelegationBody(
        public_key=public(AUTHORITY).hex(),
        unit="*",
        may=("KEYS",),
        max_class=BulletinClass.EMERGENCY,
        valid_from_ms=now_ms - 3_600_000,
        valid_until_ms=now_ms + 90 * DAY_MS,
    )
    again = seal(
        ROOT,
        key_id_of(public(ROOT)),
        kind=Kind.KEYS,
        target="*",
        issued_ms=now_ms,
        expires_ms=now_ms + 90 * DAY_MS,
        epoch=0,
        sequence=now_ms,
        body=body.encode(),
    )
    assert again == raw
    assert join_keys(split_keys((GOLDEN / "keys.bin").read_bytes())) == (GOLDEN / "keys.bin").read_bytes()


def test_the_golden_batch_reads_and_writes_the_same():
    raw = (GOLDEN / "audio.bin").read_bytes()
    batch = unpack(raw, COMMUNE.public_key(), "stream-1")
    assert (batch.epoch, batch.sequence, batch.media_sample, len(batch.packets)) == (3, 11, 528_000, 50)
    assert pack(AudioBatch(3, 11, 528_000, batch.packets), COMMUNE, "stream-1") == raw


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs Debian's ffmpeg as an independent decoder")
def test_an_independent_decoder_hears_the_golden_tones():
    import numpy as np

    heard = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(GOLDEN / "audio.opus"), "-f", "s16le", "-ac", "1", "-ar", "48000", "-"],
        check=True,
        capture_output=True,
    ).stdout
    pcm = np.frombuffer(heard, dtype="<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm))))
    peaks = sorted(round(float(peak) * 48_000 / len(pcm), -1) for peak in _two_peaks(spectrum))
    assert peaks == FACTS["tones_hz"]


def _two_peaks(spectrum):
    first = int(spectrum.argmax())
    masked = spectrum.copy()
    masked[max(0, first - 50) : first + 50] = 0
    return first, int(masked.argmax())
