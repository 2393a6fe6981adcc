"""What is said about keys: who may say it, for where, up to what, and that nothing takes a revocation back."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from speaker_protocol import chain
from speaker_protocol.messages import DelegationBody, RevocationBody, RevocationListBody, RevokedKey
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import EVERYWHERE, EnvelopeRefused, KeyRing, Kind, Refusal, Watermarks, key_id_of, seal

NOW_MS = 1_790_000_000_000
DAY_MS = 24 * 3_600_000
XA, TINH = "xa-1", "tinh-1"
PATH = (XA, TINH)


def a_key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


ROOT, AUTHORITY, COMMUNE, OTHER = (a_key(number) for number in (1, 2, 3, 4))


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def name(key: Ed25519PrivateKey) -> bytes:
    return key_id_of(public(key))


class Office:
    """A ring, its marks, and a pen whose number rises."""

    def __init__(self) -> None:
        self.ring, self.marks, self.number = KeyRing(public(ROOT)), Watermarks(), 0

    def say(self, by: Ed25519PrivateKey, body: Any, target: str, *, now_ms: int = NOW_MS, sequence: int = 0) -> bool:
        self.number += 1
        raw = seal(
            by,
            name(by),
            kind=Kind.KEYS,
            target=target,
            issued_ms=NOW_MS,
            expires_ms=NOW_MS + 300 * DAY_MS,
            epoch=1,
            sequence=sequence or self.number,
            body=body.encode(),
        )
        above = PATH[PATH.index(target) :] if target in PATH else PATH
        return chain.take(self.ring, self.marks, raw, above=above, now_ms=now_ms)[2]

    def refusal(self, *args: Any, **how: Any) -> Refusal:
        with pytest.raises(EnvelopeRefused) as refused:
            self.say(*args, **how)
        return refused.value.reason

    def plan(self, by: Ed25519PrivateKey, *, now_ms: int = NOW_MS) -> Refusal | None:
        """Why a plan by this key is not obeyed in xã 1."""
        raw = seal(
            by,
            name(by),
            kind=Kind.PLAN,
            target="n",
            issued_ms=now_ms,
            expires_ms=now_ms + DAY_MS,
            epoch=1,
            sequence=1,
            body=b"{}",
        )
        try:
            self.ring.verify(raw, kind=Kind.PLAN, target="n", path=PATH, now_ms=now_ms)
        except EnvelopeRefused as refused:
            return refused.reason
        return None


def to(key: Ed25519PrivateKey, unit: str, *may: str, **facts: Any) -> DelegationBody:
    told: dict[str, Any] = {
        "max_class": BulletinClass.EMERGENCY,
        "valid_from_ms": NOW_MS - DAY_MS,
        "valid_until_ms": NOW_MS + 30 * DAY_MS,
        **facts,
    }
    return DelegationBody(public_key=public(key).hex(), unit=unit, may=may, **told)


def an_office(**authority: Any) -> Office:
    """The root has made an authority for the province."""
    office = Office()
    assert office.say(ROOT, to(AUTHORITY, TINH, "KEYS", **authority), TINH)
    return office


def test_root_authority_commune_and_its_plan_is_obeyed():
    office = an_office()
    assert office.plan(COMMUNE) is Refusal.UNKNOWN_KEY
    assert office.say(AUTHORITY, to(COMMUNE, XA, "PLAN"), XA)
    assert office.plan(COMMUNE) is None
    assert office.plan(AUTHORITY) is Refusal.KIND_NOT_ALLOWED


def test_an_authority_is_made_by_the_root_alone_and_does_nothing_else():
    office = an_office()
    assert office.refusal(AUTHORITY, to(OTHER, XA, "KEYS"), XA) is Refusal.KIND_NOT_ALLOWED
    assert office.refusal(ROOT, to(OTHER, XA, "KEYS", "PLAN"), XA) is Refusal.KIND_NOT_ALLOWED
    office.say(AUTHORITY, to(COMMUNE, XA, "PLAN"), XA)
    assert office.refusal(COMMUNE, to(OTHER, XA, "PLAN"), XA) is Refusal.KIND_NOT_ALLOWED


def test_nobody_hands_out_more_than_was_handed_to_him():
    office = an_office(max_class=BulletinClass.PRIORITY)
    assert office.refusal(AUTHORITY, to(COMMUNE, XA, "PLAN"), XA) is Refusal.CLASS_TOO_HIGH
    usual = {"max_class": BulletinClass.PRIORITY}
    assert office.refusal(AUTHORITY, to(COMMUNE, EVERYWHERE, "PLAN", **usual), XA) is Refusal.OUT_OF_SCOPE
    assert office.refusal(AUTHORITY, to(COMMUNE, TINH, "PLAN", **usual), XA) is Refusal.OUT_OF_SCOPE
    assert office.say(AUTHORITY, to(COMMUNE, XA, "PLAN", **usual), XA)


def test_an_authority_of_one_commune_makes_no_key_for_the_province_above():
    office = Office()
    office.say(ROOT, to(AUTHORITY, XA, "KEYS"), XA)
    assert office.refusal(AUTHORITY, to(COMMUNE, TINH, "PLAN"), TINH) is Refusal.OUT_OF_SCOPE
    assert office.say(AUTHORITY, to(COMMUNE, XA, "PLAN"), XA)


def test_what_was_delegated_ends_with_who_delegated_it():
    office = an_office(valid_until_ms=NOW_MS + DAY_MS)
    office.say(AUTHORITY, to(COMMUNE, XA, "PLAN"), XA)
    assert office.plan(COMMUNE) is None
    assert office.plan(COMMUNE, now_ms=NOW_MS + DAY_MS) is Refusal.OUTSIDE_DELEGATION
    assert office.ring.ends_ms(name(COMMUNE)) == NOW_MS + DAY_MS


def test_a_delegation_has_a_beginning():
    office = an_office()
    office.say(AUTHORITY, to(COMMUNE, XA, "PLAN", valid_from_ms=NOW_MS + DAY_MS), XA)
    assert office.plan(COMMUNE) is Refusal.OUTSIDE_DELEGATION
    assert office.plan(COMMUNE, now_ms=NOW_MS + DAY_MS) is None


def test_a_list_of_revocations_is_followed_by_no_older_one_and_by_no_other_of_its_number():
    office = an_office()
    office.say(AUTHORITY, to(COMMUNE, XA, "PLAN"), XA)
    gone = RevocationListBody(rl_ver=3, revoked=(RevokedKey(key_id=name(COMMUNE).hex(), at_ms=NOW_MS),))
    assert office.say(AUTHORITY, gone, TINH)
    assert not office.say(AUTHORITY, gone, TINH), "the same list signed again is the same list"
    assert office.plan(COMMUNE) is Refusal.REVOKED_KEY
    assert office.refusal(AUTHORITY, RevocationListBody(rl_ver=2), TINH) is Refusal.OLDER
    assert office.refusal(AUTHORITY, RevocationListBody(rl_ver=3), TINH) is Refusal.CONFLICTING
    assert office.say(AUTHORITY, RevocationListBody(rl_ver=4), TINH)
    assert office.plan(COMMUNE) is Refusal.REVOKED_KEY, "what was revoked stays revoked"
    office.say(AUTHORITY, to(COMMUNE, XA, "PLAN"), XA)
    assert office.plan(COMMUNE) is Refusal.REVOKED_KEY, "and is not delegated back"


def test_an_authority_is_heard_about_its_own_keys_only_and_the_root_about_all():
    office = an_office()
    office.say(ROOT, to(OTHER, XA, "PLAN"), XA)
    mine = RevocationListBody(rl_ver=1, revoked=(RevokedKey(key_id=name(OTHER).hex(), at_ms=0),))
    office.say(AUTHORITY, mine, TINH)
    assert office.plan(OTHER) is None
    single = RevocationBody(key_id=name(OTHER).hex(), at_ms=0)
    assert office.refusal(AUTHORITY, single, XA) is Refusal.KIND_NOT_ALLOWED
    assert office.say(ROOT, single, XA)
    assert office.plan(OTHER) is Refusal.REVOKED_KEY


def test_with_an_authority_everything_it_delegated_is_revoked():
    office = an_office()
    office.say(AUTHORITY, to(COMMUNE, XA, "PLAN"), XA)
    office.say(ROOT, RevocationBody(key_id=name(AUTHORITY).hex(), at_ms=NOW_MS), TINH)
    assert office.plan(COMMUNE) is Refusal.REVOKED_KEY
    assert office.refusal(AUTHORITY, to(OTHER, XA, "PLAN"), XA) is Refusal.REVOKED_KEY


def test_an_older_delegation_does_not_follow_a_newer_one():
    office = an_office()
    office.say(AUTHORITY, to(COMMUNE, XA, "PLAN"), XA, sequence=10)
    assert office.refusal(AUTHORITY, to(COMMUNE, XA, "PLAN", "ALERTS"), XA, sequence=9) is Refusal.OLDER
