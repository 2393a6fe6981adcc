"""What a node obeys and what it refuses, each with its own reason."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import (
    EnvelopeRefused,
    KeyRing,
    Kind,
    KnownKey,
    Refusal,
    Watermarks,
    key_id_of,
    parse,
    seal,
)

ROOT = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
COMMUNE = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
NOW_MS = 1_780_000_000_000
PATH = ("xa-1", "tinh-1")


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def a_ring(*, unit: str = "xa-1", until_ms: int = NOW_MS + 10_000_000) -> KeyRing:
    ring = KeyRing(public(ROOT))
    ring.learn(
        KnownKey(public(COMMUNE), unit, frozenset({Kind.PLAN}), BulletinClass.EMERGENCY, NOW_MS - 1_000, until_ms)
    )
    return ring


def a_plan(key: Ed25519PrivateKey = COMMUNE, **changed: object) -> bytes:
    told: dict[str, object] = {
        "kind": Kind.PLAN,
        "target": "node-1",
        "issued_ms": NOW_MS,
        "expires_ms": NOW_MS + 60_000,
        "epoch": 3,
        "sequence": 7,
        "body": b'{"a":1}',
    }
    return seal(key, key_id_of(public(key)), **{**told, **changed})  # type: ignore[arg-type]


def refusal(raw: bytes, ring: KeyRing | None = None, now_ms: int | None = NOW_MS, target: str = "node-1") -> Refusal:
    with pytest.raises(EnvelopeRefused) as refused:
        (ring or a_ring()).verify(raw, kind=Kind.PLAN, target=target, path=PATH, now_ms=now_ms)
    return refused.value.reason


def test_a_plan_of_the_communes_key_is_obeyed():
    envelope = a_ring().verify(a_plan(), kind=Kind.PLAN, target="node-1", path=PATH, now_ms=NOW_MS)
    assert (envelope.target, envelope.order, envelope.body) == ("node-1", (3, 7), b'{"a":1}')


def test_a_key_of_the_province_may_speak_for_the_commune_below_it():
    ring = a_ring(unit="tinh-1")
    assert ring.verify(a_plan(), kind=Kind.PLAN, target="node-1", path=PATH, now_ms=NOW_MS).epoch == 3


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", Refusal.GARBAGE),
        (b"\x01" * 60, Refusal.GARBAGE),
        (b"\x63" + a_plan()[1:], Refusal.VERSION),
        (a_plan(STRANGER), Refusal.UNKNOWN_KEY),
        (a_plan()[:-40] + bytes(8) + a_plan()[-32:], Refusal.SIGNATURE),
        (a_plan(kind=Kind.CONFIG), Refusal.WRONG_KIND),
        (a_plan(target="node-2"), Refusal.WRONG_TARGET),
        (a_plan(expires_ms=NOW_MS), Refusal.EXPIRED),
        (a_plan(issued_ms=NOW_MS + 600_000), Refusal.FROM_THE_FUTURE),
    ],
)
def test_each_wrong_is_refused_by_its_own_name(raw: bytes, reason: Refusal):
    assert refusal(raw) is reason


def test_a_key_of_another_commune_is_out_of_scope():
    assert refusal(a_plan(), a_ring(unit="xa-2")) is Refusal.OUT_OF_SCOPE


def test_a_key_may_sign_only_the_kinds_it_was_given():
    with pytest.raises(EnvelopeRefused) as refused:
        a_ring().verify(a_plan(kind=Kind.ALERTS), kind=Kind.ALERTS, target="node-1", path=PATH, now_ms=NOW_MS)
    assert refused.value.reason is Refusal.KIND_NOT_ALLOWED


def test_a_revoked_key_is_dead_from_its_instant_on_but_the_root_cannot_be_revoked():
    ring = a_ring()
    ring.revoke(key_id_of(public(COMMUNE)), NOW_MS)
    assert refusal(a_plan(), ring) is Refusal.REVOKED_KEY
    ring.revoke(ring.root_id, NOW_MS)
    by_root = a_plan(ROOT)
    assert ring.verify(by_root, kind=Kind.PLAN, target="node-1", path=PATH, now_ms=NOW_MS).epoch == 3


def test_a_delegation_that_ran_out_ends_what_its_key_may_say():
    assert refusal(a_plan(), a_ring(until_ms=NOW_MS)) is Refusal.OUTSIDE_DELEGATION


def test_a_node_without_time_judges_no_instant_but_everything_else():
    ring = a_ring()
    old = a_plan(expires_ms=1)
    assert ring.verify(old, kind=Kind.PLAN, target="node-1", path=PATH, now_ms=None).expires_ms == 1
    assert refusal(a_plan(STRANGER), ring, None) is Refusal.UNKNOWN_KEY


def test_not_one_flipped_bit_and_not_one_lost_byte_is_accepted():
    raw, ring = a_plan(), a_ring()
    tried = 0
    for position in range(len(raw)):
        for bit in range(8):
            bent = bytearray(raw)
            bent[position] ^= 1 << bit
            refusal(bytes(bent), ring)
            tried += 1
        refusal(raw[:position], ring)
    assert tried == len(raw) * 8


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_never_raises_anything_but_a_refusal(raw: bytes):
    with pytest.raises(EnvelopeRefused):
        a_ring().verify(raw, kind=Kind.PLAN, target="node-1", path=PATH, now_ms=NOW_MS)


def test_order_is_kept_per_topic_whichever_key_signed():
    marks = Watermarks()
    first, newer = parse(a_plan()), parse(a_plan(sequence=8))
    assert marks.admit("plan", first)
    assert not marks.admit("plan", first), "the same digest again is a harmless duplicate"
    assert marks.admit("plan", newer)
    with pytest.raises(EnvelopeRefused, match="older"):
        marks.admit("plan", first)
    with pytest.raises(EnvelopeRefused, match="conflicting"):
        marks.admit("plan", parse(a_plan(sequence=8, body=b"other")))
    assert marks.admit("config", first), "another topic has an order of its own"
    with pytest.raises(EnvelopeRefused, match="older"):
        marks.admit("plan", parse(a_plan(STRANGER, sequence=1)))
    assert marks.admit("plan", parse(a_plan(epoch=4, sequence=1))), "a new epoch starts below no number of the old"


def test_what_was_admitted_survives_a_reboot():
    marks = Watermarks()
    marks.admit("plan", parse(a_plan()))
    again = Watermarks(marks.snapshot())
    with pytest.raises(EnvelopeRefused, match="older"):
        again.admit("plan", parse(a_plan(sequence=6)))
    assert again.highest(["plan"]) == (3, 7)
    assert again.highest(["config"]) == (0, 0)
