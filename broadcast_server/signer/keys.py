"""Keys in files of this machine: one root, one server key, one key for each unit that speaks for itself.

A key is 32 raw private bytes in a file of mode 0600 under `LOA_DATA_DIR/keys`; it is made at first use from the
injected chance and never leaves this module. Delegations are not stored: they follow from the keys there are and are
signed by the root whenever they are asked for, so a lost broker is refilled from here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.domain.clock import Chance
from broadcast_server.domain.errors import Corrupt, Refused
from broadcast_server.signer.port import SignRequest
from speaker_protocol.messages import DelegationBody
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import Kind, key_id_of, seal

KEY_BYTES: Final = 32
DELEGATION_LIFE_MS: Final = 400 * 24 * 3_600_000
UNIT_MAY: Final = (Kind.PLAN, Kind.CONFIG, Kind.ORDER, Kind.ALERTS)
SERVER_MAY: Final = (Kind.ACK, Kind.HEAD, Kind.CONFIG)
"""CONFIG too: it tells a node its path, so it must reach one that does not know its new unit's key yet."""
_UNIT_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")  # what a topic's level may be; never a way out of the folder


@dataclass(frozen=True, slots=True)
class _Held:
    private: Ed25519PrivateKey
    public: bytes
    key_id: bytes


class FileSigner:
    """The `Signer` of one machine. `path_of` gives a unit's own id and its ancestors, nearest first."""

    def __init__(self, folder: Path, *, chance: Chance, path_of: Callable[[str], Sequence[str]]) -> None:
        self._folder = folder
        self._chance = chance
        self._path_of = path_of
        self._units: dict[str, _Held] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._root = self._load_or_make("root")
        self._server = self._load_or_make("server")
        for file in sorted(folder.glob("unit-*.key")):
            unit = file.stem.removeprefix("unit-")
            self._units[unit] = self._load_or_make(file.stem)

    def root_public(self) -> bytes:
        """The raw public root key that nodes are enrolled with."""
        return self._root.public

    def ensure_units(self, units: Iterable[str]) -> None:
        """Give each unit a key of its own if it has none."""
        for unit in units:
            if unit not in self._units:
                if not _UNIT_ID.fullmatch(unit):
                    raise Refused("no_key_for_unit", unit=unit)
                self._units[unit] = self._load_or_make(f"unit-{unit}")

    async def sign_many(self, requests: Sequence[SignRequest]) -> list[bytes]:
        """See `Signer.sign_many`. About 40 µs a signature; callers with thousands run it in slices."""
        chosen = [(request, self._speaker(request)) for request in requests]
        return [
            seal(
                held.private,
                held.key_id,
                kind=request.kind,
                target=request.target,
                issued_ms=request.issued_ms,
                expires_ms=request.expires_ms,
                epoch=request.epoch,
                sequence=request.sequence,
                body=request.body,
            )
            for request, held in chosen
        ]

    async def key_statements(self, unit: str, *, issued_ms: int, epoch: int, sequence: int) -> tuple[bytes, ...]:
        """The delegations for `unit`: its own key, if it has one, and the server's key."""
        speakers: list[tuple[_Held, tuple[Kind, ...]]] = [(self._server, SERVER_MAY)]
        if unit in self._units:
            speakers.append((self._units[unit], UNIT_MAY))
        return tuple(
            seal(
                self._root.private,
                self._root.key_id,
                kind=Kind.KEYS,
                target=unit,
                issued_ms=issued_ms,
                expires_ms=issued_ms + DELEGATION_LIFE_MS,
                epoch=epoch,
                sequence=sequence,
                body=DelegationBody(
                    public_key=held.public.hex(),
                    unit=unit,
                    may=tuple(kind.name for kind in may),
                    max_class=BulletinClass.EMERGENCY,
                    valid_from_ms=issued_ms - 3_600_000,
                    valid_until_ms=issued_ms + DELEGATION_LIFE_MS,
                ).encode(),
            )
            for held, may in speakers
        )

    def _speaker(self, request: SignRequest) -> _Held:
        if request.unit is None:
            if request.kind not in SERVER_MAY:
                raise Refused("no_key_for_kind", kind=request.kind.name)
            return self._server
        if request.kind not in UNIT_MAY:
            raise Refused("no_key_for_kind", kind=request.kind.name)
        for place in self._path_of(request.unit):
            if place in self._units:
                return self._units[place]
        raise Refused("no_key_for_unit", unit=request.unit)

    def _load_or_make(self, name: str) -> _Held:
        file = self._folder / f"{name}.key"
        if not file.exists():
            draft = file.with_suffix(".new")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(self._chance.token_bytes(KEY_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
            draft.rename(file)
            self._sync_folder()
        raw = file.read_bytes()
        if len(raw) != KEY_BYTES:
            raise Corrupt("key_file_damaged", name=name)
        private = Ed25519PrivateKey.from_private_bytes(raw)
        public = private.public_key().public_bytes_raw()
        return _Held(private, public, key_id_of(public))

    def _sync_folder(self) -> None:
        """A key that was spoken with must be there after a power cut, its name included."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
