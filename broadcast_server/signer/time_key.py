"""The key that tells nodes the time and that their reports are kept, and may do nothing else.

It lies with whoever answers (the inbox), in a folder of its own beside the signer's: `time@ID.key` is the private half,
`time@ID.pub` what the signer reads to delegate to it. Answers must leave within milliseconds and by the thousand, so
they do not go through the signer; who steals this key can lie about the time and swallow reports, but not make a sound.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.domain.clock import Chance
from broadcast_server.domain.errors import Corrupt, Refused
from broadcast_server.signer.port import SignRequest
from broadcast_server.signer.register import DAY_MS, KEY_BYTES, write_secret
from speaker_protocol.signing import Kind, key_id_of, seal

LIFE_MS: Final = 30 * DAY_MS
OVERLAP_MS: Final = 9 * DAY_MS
SETTLE_MS: Final = 26 * 3_600_000
"""A successor answers only after every node had time to hear of it: keys are told anew once a day."""
LOOK_EVERY_MS: Final = 3_600_000


def time_folder(keys: Path) -> Path:
    """Where it lies, for a folder of signing keys."""
    return keys.with_name("time-key")


def public_halves(folder: Path) -> list[str]:
    """The public time keys, hex, for who delegates to them; what is no key is left out."""
    return [made.public for path in sorted(folder.glob("time@*.pub")) if (made := _read(path)) is not None]


@dataclass(frozen=True, slots=True)
class _Made:
    public: str
    made_ms: int
    """0: not used yet."""


@dataclass(frozen=True, slots=True)
class _Held:
    key_id: str
    private: Ed25519PrivateKey
    made_ms: int


class TimeKey:
    """Signs acknowledgements, nothing else (`Sealer`)."""

    def __init__(self, folder: Path, *, chance: Chance) -> None:
        """Makes the first key. Raises `Corrupt("key_file_damaged")`."""
        self._folder, self._chance = folder, chance
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._looked: tuple[int, int] | None = None
        self._held: list[_Held] = []
        if not any(folder.glob("time@*.key")):
            self.make(0)
        self._load()

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The keys it holds, the newest last."""
        return tuple(held.key_id for held in self._held)

    async def sign_many(self, requests: Sequence[SignRequest]) -> list[bytes]:
        """See `Sealer.sign_many`. Raises `Refused("no_key_for_kind")` for anything but an acknowledgement."""
        for request in requests:
            if request.kind is not Kind.ACK or request.unit is not None:
                raise Refused("no_key_for_kind", kind=request.kind.name)
        if not requests:
            return []
        held = self._speaker(requests[0].issued_ms)
        return [
            seal(
                held.private,
                bytes.fromhex(held.key_id),
                kind=request.kind,
                target=request.target,
                issued_ms=request.issued_ms,
                expires_ms=request.expires_ms,
                epoch=request.epoch,
                sequence=request.sequence,
                body=request.body,
            )
            for request in requests
        ]

    def make(self, now_ms: int) -> str:
        """One more key; its id."""
        secret = self._chance.token_bytes(KEY_BYTES)
        public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        key_id = key_id_of(public).hex()
        write_secret(self._folder / f"time@{key_id}.key", secret)
        self._tell(key_id, public.hex(), now_ms)
        return key_id

    def drop(self, key_id: str) -> None:
        """A key that is revoked or over."""
        for ending in ("key", "pub"):
            (self._folder / f"time@{key_id}.{ending}").unlink(missing_ok=True)

    def replace_all(self, now_ms: int) -> None:
        """Another key in the place of all: those of a backup may have been replaced or revoked since it was made."""
        for held in self._held:
            self.drop(held.key_id)
        self.make(now_ms)
        self._load()

    def _tell(self, key_id: str, public: str, made_ms: int) -> None:
        path = self._folder / f"time@{key_id}.pub"
        write_secret(path, json.dumps({"public": public, "made_ms": made_ms}).encode())
        path.chmod(0o644)

    def _load(self) -> None:
        found = []
        for path in self._folder.glob("time@*.key"):
            raw = path.read_bytes()
            if len(raw) != KEY_BYTES:
                raise Corrupt("key_file_damaged", name=path.stem)
            private = Ed25519PrivateKey.from_private_bytes(raw)
            key_id = key_id_of(private.public_key().public_bytes_raw()).hex()
            made = _read(path.with_suffix(".pub"))
            found.append(_Held(key_id, private, 0 if made is None else made.made_ms))
        self._held = sorted(found, key=lambda held: (held.made_ms, held.key_id))

    def _speaker(self, now_ms: int) -> _Held:
        looked = (self._folder.stat().st_mtime_ns, now_ms // LOOK_EVERY_MS)
        if looked != self._looked:
            self._tend(now_ms)
            self._looked = (self._folder.stat().st_mtime_ns, now_ms // LOOK_EVERY_MS)
        settled = [held for held in self._held if held.made_ms + SETTLE_MS <= now_ms]
        return settled[-1] if settled else self._held[0]

    def _tend(self, now_ms: int) -> None:
        """Date the first key, make the successor of what will end, drop what has ended."""
        self._load()
        for held in self._held:
            if not held.made_ms:
                self._tell(held.key_id, held.private.public_key().public_bytes_raw().hex(), now_ms)
        newest_ms = max((held.made_ms or now_ms for held in self._held), default=None)
        if newest_ms is None or now_ms - newest_ms >= LIFE_MS - OVERLAP_MS:
            self.make(now_ms)
        for held in self._held:
            if held.made_ms and now_ms - held.made_ms >= LIFE_MS:
                self.drop(held.key_id)
        self._load()


def _read(path: Path) -> _Made | None:
    try:
        told = json.loads(path.read_bytes())
        made = _Made(str(told["public"]), int(told["made_ms"]))
        is_key = len(bytes.fromhex(made.public)) == KEY_BYTES
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return made if is_key else None
