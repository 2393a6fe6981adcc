"""What is said about keys, taken in: delegations of the root and of an authority, and lists of revocations.

Whoever verifies (a node's gate, a tool, a test) learns through `take`; there is no second way into a `KeyRing`. A
maintainer must not break: (1) an authority is made by the root alone and may do nothing but delegate; (2) what it
delegates lies within its own place and class, and ends when it ends; (3) a list of revocations is never followed by an
older one, and what it names stays revoked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from speaker_protocol.messages import DelegationBody, RevocationBody, RevocationListBody, decode_key_statement
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import (
    EVERYWHERE,
    Envelope,
    EnvelopeRefused,
    KeyRing,
    Kind,
    KnownKey,
    ListInForce,
    Refusal,
    Watermarks,
    parse,
)
from speaker_protocol.topics import ROOT

Statement = DelegationBody | RevocationBody | RevocationListBody

REMEMBERED_AFTER_END_MS: Final = 10 * 24 * 3_600_000
"""A delegation that is over for so long is forgotten: no clock that is trusted at all is wrong by more."""


def in_order(envelopes: Sequence[bytes], ring: KeyRing) -> list[bytes]:
    """What the root signed first: it says who may sign the rest. What is no envelope stays, to be refused."""

    def is_of_another(raw: bytes) -> bool:
        try:
            return parse(raw).key_id != ring.root_id
        except EnvelopeRefused:
            return True

    return sorted(envelopes, key=is_of_another)


def take(
    ring: KeyRing, marks: Watermarks, raw: bytes, *, above: Sequence[str], now_ms: int | None
) -> tuple[Envelope, Statement, bool]:
    """Learn one statement that came for the place `above[0]`; `above`: that place and its ancestors, nearest first.

    Answers with the verified envelope, what it says, and whether it was new. Raises `EnvelopeRefused`.
    """
    claimed = parse(raw).target  # not believed yet: only chooses which of its own places the verifier compares with
    target = claimed if claimed in above or claimed == EVERYWHERE else above[0]
    envelope = ring.verify(raw, kind=Kind.KEYS, target=target, path=above, now_ms=now_ms)
    signer = ring.signer(envelope)
    is_root = envelope.key_id == ring.root_id
    statement = decode_key_statement(envelope.body)
    if isinstance(statement, RevocationListBody):
        return envelope, statement, _take_list(ring, envelope, statement)
    if isinstance(statement, RevocationBody):
        if not is_root:
            raise EnvelopeRefused(Refusal.KIND_NOT_ALLOWED)
        is_new = not ring.is_revoked(bytes.fromhex(statement.key_id), None)
        ring.revoke(bytes.fromhex(statement.key_id), statement.at_ms)
        return envelope, statement, is_new
    if not is_root and statement.unit != envelope.target:
        raise EnvelopeRefused(Refusal.OUT_OF_SCOPE)
    key = statement.key(None if is_root else envelope.key_id)
    _check(key, signer, above, is_root=is_root)
    is_new = marks.admit(mark_of(statement), envelope, revoked=ring.revoked(now_ms))
    ring.learn(key)
    return envelope, statement, is_new


def mark_of(statement: DelegationBody) -> str:
    """The name under which the order of the statements about one key is remembered."""
    return f"{ROOT}/unit/{statement.unit}/keys {statement.public_key[:16]}"


def _check(key: KnownKey, signer: KnownKey, above: Sequence[str], *, is_root: bool) -> None:
    if key.may_delegate and (not is_root or key.kinds != {Kind.KEYS}):
        raise EnvelopeRefused(Refusal.KIND_NOT_ALLOWED)
    if is_root:
        return
    # The signer's place must be the key's own or above it: nobody hands out more than was handed to him.
    own = () if key.unit is None else above[above.index(key.unit) :]
    if signer.unit is not None and signer.unit not in own:
        raise EnvelopeRefused(Refusal.OUT_OF_SCOPE)
    if BulletinClass(key.max_class).severity > BulletinClass(signer.max_class).severity:
        raise EnvelopeRefused(Refusal.CLASS_TOO_HIGH)


def _take_list(ring: KeyRing, envelope: Envelope, said: RevocationListBody) -> bool:
    held, digest = ring.lists.get(envelope.key_id), hashlib.sha256(envelope.body).digest()
    if held is not None and said.rl_ver < held.version:
        raise EnvelopeRefused(Refusal.OLDER)
    if held is not None and said.rl_ver == held.version:
        if digest != held.digest:
            raise EnvelopeRefused(Refusal.CONFLICTING)
        return False
    ring.lists[envelope.key_id] = ListInForce(said.rl_ver, digest)
    for line in said.revoked:
        ring.revoke(bytes.fromhex(line.key_id), line.at_ms, by=envelope.key_id)
    return True
