"""What the signer writes down: rows of the one audit chain, and while that cannot be written a journal of its own.

A maintainer must not break: (1) a line is in the chain, or in the journal and on the disk, before what it tells of
leaves; (2) the journal's lines come into the chain, in order, with the next write that succeeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.store import audit
from broadcast_server.store.journal import Journal, take_over
from broadcast_server.store.session import Session, Store

log = get_logger()

ACTOR: Final = "signer"
NAME: Final = "signer-journal.jsonl"
TAKEN: Final = "signer_journal_taken"
"""The fact that says how much of the journal the chain has."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was signed, or refused."""

    verb: str
    unit_id: str | None
    subject: str
    detail: dict[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        """As the chain and the journal take it."""
        told = {"verb": self.verb, "unit_id": self.unit_id, "subject": self.subject, "detail": self.detail}
        return {"actor": ACTOR, **told}


class Books:
    """`journal`: for when the chain cannot be written; None: there is none, and nothing is signed then."""

    def __init__(self, store: Store, clock: Clock, journal: Journal | None) -> None:
        self._store, self._clock, self._journal = store, clock, journal
        self._owes = journal is not None
        """Whether the journal may hold what the chain does not."""

    async def note(self, lines: Sequence[Line], *, may_wait: bool) -> None:
        """Write them; into the journal where the chain cannot be written and they `may_wait`. Raises `Unavailable`."""
        if not lines:
            return
        now = self._clock.now()
        journaled = self._journal.read() if self._owes and self._journal is not None else []

        def write(session: Session) -> None:
            take_over(session, journaled, now=now, fact=TAKEN)
            for line in lines:
                audit.append(session, now=now, **line.row)

        try:
            await self._store.begin(write, ring=False)
        except Unavailable as away:
            if not may_wait or self._journal is None:
                raise
            log.warning("signer.journal", code=away.code, lines=len(lines))
            self._journal.write([line.row for line in lines], now=now)
            self._owes = True
        else:
            self._owes = False
