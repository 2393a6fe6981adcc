r"""The one signed envelope: Ed25519 over the raw bytes, with domain separation, scope, expiry and order.

Layout, big-endian: fixed header (`HEADER`), target (UTF-8), body, signature (64 bytes). The signature covers
`b"loa/1 <kind>\0"` + header + target + body, so an envelope of one kind can never pass for another. A key is named by
the first 8 bytes of the SHA-256 of its public bytes.

Order: `(epoch, sequence)` is compared per topic, plan against plan, never across, whichever key of the one server
signed: a key that is rotated out must not bring back what it once signed. What a revoked key signed counts no more. The
same digest again is a harmless duplicate. Every refusal has a distinct reason so that it can be counted.

Keys come in a chain of two links: the root (learned at enrolment) delegates to an authority, which may do nothing but
delegate; the authority delegates to the keys that speak. A delegation is itself an envelope of kind KEYS
(`speaker_protocol.chain`); `KeyRing` holds what was learned and answers for whom a key may speak. A verifier checks in
this order, each with its own reason:

| Step | What | Reason |
|---|---|---|
| 1 | length and form | `garbage` |
| 2 | format version | `version` |
| 3 | the kind that belongs on this topic | `wrong_kind` |
| 4 | the key is known, and who delegated it | `unknown_key` |
| 5 | neither it nor who delegated it is revoked | `revoked_key` |
| 6 | signature | `signature` |
| 7 | the key may sign this kind | `kind_not_allowed` |
| 8 | the key's place is the verifier's own or above it | `out_of_scope` |
| 9 | addressed to the verifier | `wrong_target` |
| 10 | the message's own instants | `expired`, `from_the_future` |
| 11 | the chain's validity | `outside_delegation` |
| 12 | body: strict JSON, every field that must be understood is | `body`, `critical_field` |
| 13 | class not above the key's, segment by segment | `class_too_high` |
| 14 | epoch and sequence above what was obeyed, or above the floors the server told | `older`, `conflicting` |
| 15 | the node knows what it obeyed, or was told the floors | `resync` |

Steps 1 to 11 are `KeyRing.verify`, 12 `messages.decode`, 14 `Watermarks.admit`, 15 the node's gate; the class is judged
before the order, so that what is refused leaves no mark. What the message then does (quiet hours, gain, length) is
judged by `rules`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from speaker_protocol import EVERYWHERE as EVERYWHERE  # noqa: PLC0414  (part of the vocabulary of scopes)
from speaker_protocol import FORMAT_VERSION, OLDEST_FORMAT_VERSION

SIGNATURE_BYTES: Final = 64
KEY_ID_BYTES: Final = 8
MAX_ENVELOPE_BYTES: Final = 256 * 1024
CLOCK_TOLERANCE_MS: Final = 120_000
"""How far in the future an issue instant may lie before it is refused (the node's own clock may be late)."""


class Kind(IntEnum):
    """What an envelope carries; part of what is signed."""

    PLAN = 1
    CONFIG = 2
    ORDER = 3
    ACK = 4
    ALERTS = 5
    KEYS = 6
    HEAD = 7
    STATUS = 8
    REPORT = 9


@dataclass(frozen=True, slots=True)
class HeaderField:
    """One field of the fixed header, as data: the document's table is printed from it."""

    name: str
    code: str
    meaning: str


HEADER_FIELDS: Final = (
    HeaderField("version", "B", "format version; N and N-1 are understood"),
    HeaderField("kind", "B", "what the body is"),
    HeaderField("key_id", "8s", "first 8 bytes of the SHA-256 of the signer's public key"),
    HeaderField("issued_ms", "Q", "UTC milliseconds when it was signed"),
    HeaderField("expires_ms", "Q", "UTC milliseconds from which on it must not be obeyed"),
    HeaderField("epoch", "I", "fencing epoch of the signing leader"),
    HeaderField("sequence", "Q", "rises with every new content under one key and topic"),
    HeaderField("target_bytes", "B", "length of the target that follows"),
)
HEADER: Final = struct.Struct(">" + "".join(part.code for part in HEADER_FIELDS))


class Refusal(StrEnum):
    """Why a node did not obey; each is counted by itself."""

    GARBAGE = "garbage"
    VERSION = "version"
    UNKNOWN_KEY = "unknown_key"
    REVOKED_KEY = "revoked_key"
    SIGNATURE = "signature"
    WRONG_KIND = "wrong_kind"
    WRONG_TARGET = "wrong_target"
    KIND_NOT_ALLOWED = "kind_not_allowed"
    OUT_OF_SCOPE = "out_of_scope"
    EXPIRED = "expired"
    FROM_THE_FUTURE = "from_the_future"
    OUTSIDE_DELEGATION = "outside_delegation"
    OLDER = "older"
    CONFLICTING = "conflicting"
    RESYNC = "resync"
    BODY = "body"
    CRITICAL_FIELD = "critical_field"
    CLASS_TOO_HIGH = "class_too_high"


class EnvelopeRefused(ValueError):  # noqa: N818 - reads as what happened, like the counters
    """The envelope is not to be obeyed; `reason` says why."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed envelope; nothing in it is trusted before `KeyRing.verify` returned it."""

    version: int
    kind: Kind
    key_id: bytes
    issued_ms: int
    expires_ms: int
    epoch: int
    sequence: int
    target: str
    body: bytes
    raw: bytes = field(repr=False)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the whole envelope, signature included."""
        return hashlib.sha256(self.raw).digest()

    @property
    def order(self) -> tuple[int, int]:
        """`(epoch, sequence)`, to be compared per topic and key only."""
        return (self.epoch, self.sequence)


def key_id_of(public: bytes) -> bytes:
    """The 8-byte name of a raw 32-byte public key."""
    return hashlib.sha256(public).digest()[:KEY_ID_BYTES]


def _separation(kind: Kind) -> bytes:
    return b"loa/1 " + kind.name.encode("ascii") + b"\0"


def seal(
    key: Ed25519PrivateKey,
    key_id: bytes,
    *,
    kind: Kind,
    target: str,
    issued_ms: int,
    expires_ms: int,
    epoch: int,
    sequence: int,
    body: bytes,
) -> bytes:
    """The envelope's bytes. `target` is the id of the node, unit or stream addressed (at most 255 bytes)."""
    addressed = target.encode("utf-8")
    head = HEADER.pack(FORMAT_VERSION, kind, key_id, issued_ms, expires_ms, epoch, sequence, len(addressed))
    signed = head + addressed + body
    return signed + key.sign(_separation(kind) + signed)


def parse(raw: bytes) -> Envelope:
    """Read an envelope without trusting it. Raises `EnvelopeRefused` (GARBAGE or VERSION)."""
    if not HEADER.size + SIGNATURE_BYTES <= len(raw) <= MAX_ENVELOPE_BYTES:
        raise EnvelopeRefused(Refusal.GARBAGE)
    version, kind, key_id, issued_ms, expires_ms, epoch, sequence, length = HEADER.unpack_from(raw)
    if not OLDEST_FORMAT_VERSION <= version <= FORMAT_VERSION:
        raise EnvelopeRefused(Refusal.VERSION)
    body_at = HEADER.size + length
    if body_at + SIGNATURE_BYTES > len(raw):
        raise EnvelopeRefused(Refusal.GARBAGE)
    try:
        return Envelope(
            version=version,
            kind=Kind(kind),
            key_id=key_id,
            issued_ms=issued_ms,
            expires_ms=expires_ms,
            epoch=epoch,
            sequence=sequence,
            target=raw[HEADER.size : body_at].decode("utf-8"),
            body=raw[body_at:-SIGNATURE_BYTES],
            raw=raw,
        )
    except ValueError:
        raise EnvelopeRefused(Refusal.GARBAGE) from None


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What a key may do, as learned from a delegation (or, for the root, at enrolment)."""

    public: bytes
    unit: str | None
    """The place it may speak for and everything below it; None: every place."""
    kinds: frozenset[Kind]
    max_class: str
    valid_from_ms: int
    valid_until_ms: int
    issuer: bytes | None = None
    """The key that delegated it; None: the root."""

    @property
    def may_delegate(self) -> bool:
        """Whether it is an authority: it signs delegations and revocations, and nothing else."""
        return Kind.KEYS in self.kinds


@dataclass(frozen=True, slots=True)
class ListInForce:
    """The revocations of one signer that a verifier holds."""

    version: int
    digest: bytes
    """Of the body: the same list signed again is the same list."""


class KeyRing:
    """The keys a verifier knows: the root from enrolment, and what was delegated since.

    It verifies; it does not remember order (see `Watermarks`) and it reads no clock: every call says when `now_ms` is.
    """

    def __init__(self, root_public: bytes) -> None:
        self._root_id = key_id_of(root_public)
        forever = (1 << 63) - 1
        self._keys: dict[bytes, KnownKey] = {
            self._root_id: KnownKey(root_public, None, frozenset(Kind), "emergency", 0, forever)
        }
        self._loaded: dict[bytes, Ed25519PublicKey] = {}
        self._issuers: dict[bytes, set[bytes]] = {}
        """Everybody who ever delegated a key: the list of any of them may name it."""
        self._revoked: dict[bytes, dict[bytes, int]] = {}
        self.lists: dict[bytes, ListInForce] = {}
        self.floor_ms = 0
        """An instant that is surely past: a verifier without a clock refuses what was over by then."""

    @property
    def root_id(self) -> bytes:
        """The name of the key the node was enrolled with."""
        return self._root_id

    @property
    def rl_version(self) -> int:
        """The highest version of any list of revocations that is held; 0: none."""
        return max((held.version for held in self.lists.values()), default=0)

    def learn(self, key: KnownKey) -> None:
        """Take a delegation that was verified."""
        name = key_id_of(key.public)
        if name == self._root_id:
            return
        self._keys[name] = key
        self._issuers.setdefault(name, set()).add(key.issuer or self._root_id)

    def forget(self, key_id: bytes) -> None:
        """A key whose delegation is long over; what is known of its revocation stays."""
        if key_id != self._root_id:
            self._keys.pop(key_id, None)
            self._loaded.pop(key_id, None)

    def revoke(self, key_id: bytes, at_ms: int, *, by: bytes | None = None) -> None:
        """From `at_ms` on nothing signed by this key is obeyed. The root cannot be revoked by the wire.

        `by`: who says so (None: the root). Whoever is not the root is heard only about keys it delegated itself.
        """
        if key_id != self._root_id:
            said = self._revoked.setdefault(by or self._root_id, {})
            said[key_id] = min(at_ms, said.get(key_id, at_ms))

    def known(self, key_id: bytes) -> KnownKey | None:
        """What is known of a key."""
        return self._keys.get(key_id)

    def signer(self, envelope: Envelope) -> KnownKey:
        """Who signed an envelope that was verified here. Raises `KeyError` for any other."""
        return self._keys[envelope.key_id]

    def all_keys(self) -> Iterable[tuple[bytes, KnownKey]]:
        """All known keys by name."""
        return self._keys.items()

    def is_revoked(self, key_id: bytes, now_ms: int | None) -> bool:
        """Whether a key, or who delegated it, is revoked. Without a clock a revocation holds whenever it begins."""
        known = self._keys.get(key_id)
        by_whom = {self._root_id, *self._issuers.get(key_id, ())}
        for name, speakers in ((key_id, by_whom), (known.issuer if known is not None else None, {self._root_id})):
            for speaker in speakers:
                at_ms = self._revoked.get(speaker, {}).get(name) if name is not None else None
                if at_ms is not None and (now_ms is None or now_ms >= at_ms):
                    return True
        return False

    def revoked(self, now_ms: int | None) -> frozenset[bytes]:
        """The keys that were ever learned and count no more."""
        return frozenset(key_id for key_id in self._issuers if self.is_revoked(key_id, now_ms))

    def ends_ms(self, key_id: bytes) -> int:
        """When the chain above a key ends; 0 for an unknown one."""
        links = self._links(key_id)
        return min((link.valid_until_ms for link in links), default=0)

    def verify(
        self,
        raw: bytes,
        *,
        kind: Kind,
        target: str,
        path: Sequence[str],
        now_ms: int | None,
    ) -> Envelope:
        """The trusted envelope, or `EnvelopeRefused` with the first reason against it (steps 1 to 11).

        `path`: the verifier's own place and its ancestors (of the target); the key's unit must be among them.
        `now_ms` None: the verifier has no trusted time yet, instants are not judged (the caller must judge later), but
        for a delegation that was over by `floor_ms`.
        """
        envelope = parse(raw)
        if envelope.kind is not kind:
            raise EnvelopeRefused(Refusal.WRONG_KIND)
        links = self._links(envelope.key_id)
        if not links:
            raise EnvelopeRefused(Refusal.UNKNOWN_KEY)
        if self.is_revoked(envelope.key_id, now_ms):
            raise EnvelopeRefused(Refusal.REVOKED_KEY)
        if not self._is_signed(raw, envelope, links[0]):
            raise EnvelopeRefused(Refusal.SIGNATURE)
        self._check_right(links, kind, path)
        if envelope.target != target:
            raise EnvelopeRefused(Refusal.WRONG_TARGET)
        if now_ms is not None:
            if now_ms >= envelope.expires_ms:
                raise EnvelopeRefused(Refusal.EXPIRED)
            if envelope.issued_ms > now_ms + CLOCK_TOLERANCE_MS:
                raise EnvelopeRefused(Refusal.FROM_THE_FUTURE)
        self._check_validity(links, now_ms)
        return envelope

    def _links(self, key_id: bytes) -> tuple[KnownKey, ...]:
        """A key and who delegated it, the root left out; empty if one of them is unknown."""
        known = self._keys.get(key_id)
        if known is None or known.issuer is None:
            return () if known is None else (known,)
        above = self._keys.get(known.issuer)
        return () if above is None else (known, above)

    def _is_signed(self, raw: bytes, envelope: Envelope, known: KnownKey) -> bool:
        told = _separation(envelope.kind) + raw[:-SIGNATURE_BYTES]
        if envelope.kind is Kind.KEYS:  # the same bytes come to every node under a place, and again every day
            return _holds(known.public, told, raw[-SIGNATURE_BYTES:])
        try:
            self._public(envelope.key_id, known).verify(raw[-SIGNATURE_BYTES:], told)
        except InvalidSignature:
            return False
        return True

    @staticmethod
    def _check_right(links: tuple[KnownKey, ...], kind: Kind, path: Sequence[str]) -> None:
        if kind not in links[0].kinds:
            raise EnvelopeRefused(Refusal.KIND_NOT_ALLOWED)
        if any(link.unit is not None and link.unit not in path for link in links):
            raise EnvelopeRefused(Refusal.OUT_OF_SCOPE)

    def _check_validity(self, links: tuple[KnownKey, ...], now_ms: int | None) -> None:
        for link in links:
            is_over = (self.floor_ms if now_ms is None else now_ms) >= link.valid_until_ms
            if is_over or (now_ms is not None and now_ms + CLOCK_TOLERANCE_MS < link.valid_from_ms):
                raise EnvelopeRefused(Refusal.OUTSIDE_DELEGATION)

    def _public(self, key_id: bytes, known: KnownKey) -> Ed25519PublicKey:
        loaded = self._loaded.get(key_id)
        if loaded is None:
            loaded = self._loaded[key_id] = Ed25519PublicKey.from_public_bytes(known.public)
        return loaded


@lru_cache(maxsize=4_096)
def _holds(public: bytes, told: bytes, signature: bytes) -> bool:
    """Whether a signature is good: a pure function of its bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, told)
    except InvalidSignature:
        return False
    return True


_FLOOR: Final = "floor"


class Watermarks:
    """The highest `(epoch, sequence)` obeyed per topic and key; must be stored before acting (`snapshot`).

    `admit` answers True for something new, False for a harmless duplicate, and raises for what is older than the
    highest of any key on that topic. Marks lie apart by key only so that those of a revoked key can be left out.
    """

    def __init__(self, stored: Mapping[str, tuple[int, int, str]] | None = None) -> None:
        self._highest: dict[str, tuple[int, int, str]] = dict(stored or {})

    def admit(self, topic: str, envelope: Envelope, *, revoked: Collection[bytes] = ()) -> bool:
        """Judge and remember one envelope's order on `topic`. Raises `EnvelopeRefused` (OLDER or CONFLICTING).

        `revoked`: keys whose marks count no more, else whoever stole one could close a topic for ever.
        """
        digest = envelope.digest.hex()
        highest = max(self._marks((topic,), revoked), default=None)
        if highest is not None:
            if envelope.order < highest[:2]:
                raise EnvelopeRefused(Refusal.OLDER)
            if envelope.order == highest[:2] and highest[2]:
                if digest == highest[2]:
                    return False
                raise EnvelopeRefused(Refusal.CONFLICTING)
        self._highest[f"{topic} {envelope.key_id.hex()}"] = (*envelope.order, digest)
        return True

    def raise_floor(self, topic: str, order: tuple[int, int]) -> None:
        """What is older than this on `topic` was obeyed once, or overtaken; exactly this may still come."""
        self._highest[f"{topic} {_FLOOR}"] = (*order, "")

    def drop(self, topic: str) -> None:
        """Forget what was obeyed on a topic that nothing can come on any more."""
        for name in [name for name in self._highest if name.startswith(f"{topic} ")]:
            del self._highest[name]

    def drop_key(self, key_id: bytes) -> None:
        """A key that is long over: its marks that another key has overtaken are not needed any more."""
        ending = f" {key_id.hex()}"
        for name in [name for name in self._highest if name.endswith(ending)]:
            topic, mark = name.removesuffix(ending), self._highest[name]
            if any(other[:2] > mark[:2] for other in self._marks((topic,), ())):
                del self._highest[name]

    def snapshot(self) -> dict[str, tuple[int, int, str]]:
        """JSON-representable state, to be stored before what was admitted is acted upon."""
        return dict(self._highest)

    def highest(self, topics: Iterable[str], *, revoked: Collection[bytes] = ()) -> tuple[int, int]:
        """The highest order seen over the given topics, any key that is not revoked; `(0, 0)` if none."""
        return max((mark[:2] for mark in self._marks(tuple(topics), revoked)), default=(0, 0))

    def _marks(self, topics: tuple[str, ...], revoked: Collection[bytes]) -> Iterable[tuple[int, int, str]]:
        wanted = tuple(f"{topic} " for topic in topics)
        dead = {key_id.hex() for key_id in revoked}
        return (
            mark
            for name, mark in self._highest.items()
            if name.startswith(wanted) and name.rpartition(" ")[2] not in dead
        )
