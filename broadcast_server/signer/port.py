"""The door to the private keys: requests go in, sealed envelopes come out, keys never do.

`unit` names on whose behalf is signed; None means the server itself (stream heads, configuration), or, asked of the
time key, its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from speaker_protocol.signing import Kind


@dataclass(frozen=True, slots=True)
class SignRequest:
    """What shall be sealed. `target` is the node, unit or stream addressed; instants are UTC milliseconds."""

    kind: Kind
    unit: str | None
    target: str
    issued_ms: int
    expires_ms: int
    epoch: int
    sequence: int
    body: bytes


class Sealer(Protocol):
    """Who signs something: the signer, or the time key its answers."""

    async def sign_many(self, requests: Sequence[SignRequest]) -> list[bytes]:
        """Envelopes in the order of the requests. Raises `Refused` if no key may speak for one of them; then none is
        made.
        """
        ...


class Signer(Sealer, Protocol):
    """Whoever holds the keys that make sounds: in this process, or in a process and user of its own."""

    def root_public(self) -> bytes:
        """The raw public root key that nodes are enrolled with."""
        ...

    async def key_statements(self, unit: str, *, issued_ms: int, epoch: int, sequence: int) -> tuple[bytes, ...]:
        """KEYS envelopes for `unit`: who may delegate, the delegations in force and the lists of revocations.

        Their place in the order is the leader's `(epoch, sequence)`, not the clock's: a clock that was set back must
        not make them older than what nodes know.
        """
        ...
