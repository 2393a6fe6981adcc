"""What every verb of `control` works with: the store, time, chance and the audio room, handed down by the composition
root.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from broadcast_server.audio.assets import AssetStore
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.audio.speech import Speaker
from broadcast_server.control.hashing import HashRoom
from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.store import audit
from broadcast_server.store.journal import Journal
from broadcast_server.store.session import Session, Store
from broadcast_server.supervise import Executor

T = TypeVar("T")

log = get_logger()


@dataclass(frozen=True, slots=True)
class AudioRoom:
    """Where uploads become assets. `speaker` is None where no speech engine could be had."""

    assets: AssetStore
    sandbox: Sandbox
    speaker: Speaker | None
    quarantine: Path
    """Uploads lie here until they are judged; emptied at start."""


class Certifier(Protocol):
    """Who gives nodes their certificates (`signer.certificates`, joined by the composition root)."""

    async def issue_device(self, csr_pem: bytes, node_id: str) -> bytes:
        """The PEM chain for a node's request; the name in it is `node_id`, whatever the request says.

        Raises `Invalid("csr_invalid")`.
        """
        ...

    def authority_pem(self) -> bytes:
        """What a node trusts: the authority, its backup."""
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """One per process; verbs take it first, the `Actor` second, the request third."""

    store: Store
    clock: Clock
    chance: Chance
    executor: Executor
    audio: AudioRoom
    certifier: Certifier | None = None
    """None where nodes get no certificates: a broker without TLS of ours."""
    hashing: HashRoom = field(default_factory=HashRoom)
    """Where passwords are hashed, everybody in turn."""
    journal: Journal | None = None
    """Takes down what `urgent` did while the audit log could not be written."""

    async def urgent(self, work: Callable[[Session], T], *, ring: bool = True) -> T:
        """`store.begin` for a warning, a silencing or their ends: what must not wait for the audit log.

        Where the log cannot be written `work` is run again, and its rows are in the journal, on the disk, before the
        change is committed. Raises `Unavailable("audit_unwritable" | "journal_unwritable")` where neither can be.
        """
        try:
            return await self.store.begin(work, ring=ring)
        except Unavailable as away:
            if away.code != "audit_unwritable" or self.journal is None:
                raise
            log.error("audit.unwritable", goes_to="journal")  # noqa: TRY400  the cause is told by its code
        journal = self.journal

        def journaled(session: Session) -> T:
            rows = audit.into_journal(session)
            result = work(session)
            session.flush()
            journal.write(rows, now=self.clock.now())
            return result

        return await self.store.begin(journaled, ring=ring)
