"""The door to the private keys: requests go in, sealed envelopes come out, keys never do.

`unit` names on whose behalf is signed; None means the server itself (stream heads, configuration), or, asked of the
time key, its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from broadcast_server.domain.errors import Refused
from speaker_protocol.signing import Kind

EPOCH_OLD: Final = "signer_epoch_old"
"""Code of a refusal that passes: another leads, or the same under a higher number."""


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
    packed: bytes | None = None
    """PLAN: the shared body that the head stands for. It is not sealed; who signs reads it first."""


class Sealer(Protocol):
    """Who signs something: the signer, or the time key its answers."""

    async def sign_many(self, requests: Sequence[SignRequest]) -> list[bytes]:
        """Envelopes in the order of the requests. Raises `Refused` if no key may speak for one of them; then none is
        made. Raises `Unavailable` while the keys or what must be looked up first is away.
        """
        ...


class Signer(Sealer, Protocol):
    """Whoever holds the keys that make sounds: a process and user of its own (`door`), or this process (simulation,
    tests).
    """

    async def sign_each(self, requests: Sequence[SignRequest]) -> list[bytes | Refused]:
        """As `sign_many`, but what is refused takes nothing from the others: its place holds the reason."""
        ...

    def root_public(self) -> bytes:
        """The raw public root key that nodes are enrolled with."""
        ...

    async def statements_of(
        self, units: Sequence[str], *, issued_ms: int, epoch: int, sequence: int
    ) -> list[tuple[bytes, ...] | Refused]:
        """KEYS envelopes for each unit: who may delegate, the delegations in force and the lists of revocations. A unit
        that has no key of its own yet is given one.

        Their place in the order is the leader's `(epoch, sequence)`, not the clock's: a clock that was set back must
        not make them older than what nodes know. What is refused takes nothing from the others.
        """
        ...
