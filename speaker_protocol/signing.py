r"""The one signed envelope: Ed25519 over the raw bytes, with domain separation, scope, expiry and order.

Layout, big-endian: fixed header (`HEADER`), target (UTF-8), body, signature (64 bytes). The signature covers
`b"loa/1 <kind>\0"` + header + target + body, so an envelope of one kind can never pass for another. A key is named by
the first 8 bytes of the SHA-256 of its public bytes.

Order: `(epoch, sequence)` is compared per topic and key, plan against plan, never across. The same digest again is a
harmless duplicate. Every refusal has a distinct reason so that it can be counted. A delegation is itself an envelope
of kind KEYS signed by the root; `KeyRing` holds what was learned and answers for whom a key may speak.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

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
    OUT_OF_SCOPE = "out_of_scope"
    EXPIRED = "expired"
    FROM_THE_FUTURE = "from_the_future"
    OLDER = "older"
    CONFLICTING = "conflicting"
    BODY = "body"
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
    """The place it may speak for and everything below it; None for the root, which speaks for every place."""
    kinds: frozenset[Kind]
    max_class: str
    valid_from_ms: int
    valid_until_ms: int


class KeyRing:
    """The keys a verifier knows: the root from enrolment, and what the root delegated since.

    It verifies; it does not remember order (see `Watermarks`) and it reads no clock: every call says when `now_ms` is.
    """

    def __init__(self, root_public: bytes) -> None:
        self._root_id = key_id_of(root_public)
        forever = (1 << 63) - 1
        self._keys: dict[bytes, KnownKey] = {
            self._root_id: KnownKey(root_public, None, frozenset(Kind), "emergency", 0, forever)
        }
        self._loaded: dict[bytes, Ed25519PublicKey] = {}
        self._revoked: dict[bytes, int] = {}

    @property
    def root_id(self) -> bytes:
        """The name of the key the node was enrolled with."""
        return self._root_id

    def learn(self, key: KnownKey) -> None:
        """Take a delegation that was verified as signed by the root."""
        self._keys[key_id_of(key.public)] = key

    def revoke(self, key_id: bytes, at_ms: int) -> None:
        """From `at_ms` on nothing signed by this key is obeyed. The root cannot be revoked by the wire."""
        if key_id != self._root_id:
            self._revoked[key_id] = min(at_ms, self._revoked.get(key_id, at_ms))

    def known(self, key_id: bytes) -> KnownKey | None:
        """What is known of a key."""
        return self._keys.get(key_id)

    def verify(
        self,
        raw: bytes,
        *,
        kind: Kind,
        target: str,
        path: Sequence[str],
        now_ms: int | None,
    ) -> Envelope:
        """The trusted envelope, or `EnvelopeRefused` with the first reason against it.

        `path`: the verifier's own place and its ancestors (of the target); the key's unit must be among them.
        `now_ms` None: the verifier has no trusted time yet, instants are not judged (the caller must judge later).
        """
        envelope = parse(raw)
        if envelope.kind is not kind:
            raise EnvelopeRefused(Refusal.WRONG_KIND)
        known = self._keys.get(envelope.key_id)
        if known is None:
            raise EnvelopeRefused(Refusal.UNKNOWN_KEY)
        signed, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
        try:
            self._public(envelope.key_id, known).verify(signature, _separation(kind) + signed)
        except InvalidSignature:
            raise EnvelopeRefused(Refusal.SIGNATURE) from None
        if envelope.target != target:
            raise EnvelopeRefused(Refusal.WRONG_TARGET)
        if kind not in known.kinds or (known.unit is not None and known.unit not in path):
            raise EnvelopeRefused(Refusal.OUT_OF_SCOPE)
        revoked_ms = self._revoked.get(envelope.key_id)
        if revoked_ms is not None and (now_ms is None or now_ms >= revoked_ms):
            raise EnvelopeRefused(Refusal.REVOKED_KEY)
        if now_ms is not None:
            if now_ms >= envelope.expires_ms or not known.valid_from_ms <= now_ms < known.valid_until_ms:
                raise EnvelopeRefused(Refusal.EXPIRED)
            if envelope.issued_ms > now_ms + CLOCK_TOLERANCE_MS:
                raise EnvelopeRefused(Refusal.FROM_THE_FUTURE)
        return envelope

    def _public(self, key_id: bytes, known: KnownKey) -> Ed25519PublicKey:
        loaded = self._loaded.get(key_id)
        if loaded is None:
            loaded = self._loaded[key_id] = Ed25519PublicKey.from_public_bytes(known.public)
        return loaded


class Watermarks:
    """The highest `(epoch, sequence)` obeyed per topic and key; must be stored before acting (`snapshot`).

    `admit` answers True for something new, False for a harmless duplicate, and raises for what is older.
    """

    def __init__(self, stored: Mapping[str, tuple[int, int, str]] | None = None) -> None:
        self._highest: dict[str, tuple[int, int, str]] = dict(stored or {})

    def admit(self, topic: str, envelope: Envelope) -> bool:
        """Judge and remember one envelope's order on `topic`. Raises `EnvelopeRefused` (OLDER or CONFLICTING)."""
        name = f"{topic} {envelope.key_id.hex()}"
        digest = envelope.digest.hex()
        highest = self._highest.get(name)
        if highest is not None:
            if envelope.order == highest[:2]:
                if digest == highest[2]:
                    return False
                raise EnvelopeRefused(Refusal.CONFLICTING)
            if envelope.order < highest[:2]:
                raise EnvelopeRefused(Refusal.OLDER)
        self._highest[name] = (*envelope.order, digest)
        return True

    def snapshot(self) -> dict[str, tuple[int, int, str]]:
        """JSON-representable state, to be stored before what was admitted is acted upon."""
        return dict(self._highest)

    def highest(self, topics: Iterable[str]) -> tuple[int, int]:
        """The highest order seen over the given topics, any key; `(0, 0)` if none."""
        wanted = tuple(f"{topic} " for topic in topics)
        seen = [mark[:2] for name, mark in self._highest.items() if name.startswith(wanted)]
        return max(seen, default=(0, 0))
