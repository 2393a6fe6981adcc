"""Witnesses of the audit log: every hour its head goes into a file and to the nodes, and what nodes say is held against
the log.

Who can rewrite the database can rewrite the chain in it. They cannot unsay what thousands of boxes on poles heard last
week: each keeps the anchors it was given and says one in every status (`firmware_sim.anchors` is the reference). What
this proves is no more than: tamper-evident against the last external anchor.

A maintainer must not break: (1) the file is only appended to, and on the disk before the anchor is told to anybody; (2)
a contradiction is written down once for each anchor, shouted, and shown by `/api/v1/system` until the operator answers;
(3) what nodes claim is bounded in memory and looked up in the store once a minute, not per status.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.store import audit, facts
from broadcast_server.store.audit import Anchor
from broadcast_server.store.session import Session, Store
from broadcast_server.supervise import Executor

log = get_logger()

NAME: Final = "audit-anchors.jsonl"
EVERY: Final = timedelta(hours=1)
LOOK_S: Final = 60.0
CONTRADICTED: Final = "audit.contradicted"
_CLAIMS_WAITING: Final = 10_000
_CLAIMS_KNOWN: Final = 50_000
_OPEN_AT_MOST: Final = 200
"""Contradictions that wait for an answer; what comes then says nothing new."""


class Anchoring:
    """One per process that hears nodes; `anchor` is rung in one of them."""

    def __init__(self, *, store: Store, clock: Clock, executor: Executor, files: Sequence[Path]) -> None:
        """`files`: where anchors are appended, the operator's own disk or share among them."""
        self._store, self._clock, self._executor = store, clock, executor
        self._files = tuple(files)
        self._claims: dict[tuple[int, str], str] = {}
        self._judged: set[tuple[int, str]] = set()
        self.current: Anchor | None = None
        """What nodes are told with the time; None until the first hour's anchor is known here."""

    async def anchor(self) -> str:
        """Take the log's head to the files and to the nodes. Raises `Unavailable("anchor_unwritable")`."""
        now = self._clock.now()
        stands = await self._store.read(audit.head)
        if stands is None:
            return "nothing to anchor"
        line = json.dumps({"at": now.isoformat(), "sequence": stands.sequence, "hash": stands.hash}) + "\n"
        await self._executor.run(self._append, line)
        told = {"sequence": stands.sequence, "hash": stands.hash, "at": now.isoformat()}
        await self._store.begin(lambda session: facts.put(session, facts.AUDIT_ANCHOR, told, now=now), ring=False)
        self.current = Anchor(stands.sequence, stands.hash, now)
        return f"row {stands.sequence}"

    def heard(self, node_id: str, claim: Anchor) -> None:
        """A node says what it was told; judged at the next look."""
        key = (claim.sequence, claim.hash)
        if key not in self._judged and len(self._claims) < _CLAIMS_WAITING:  # it says it again
            self._claims.setdefault(key, node_id)

    async def run(self) -> None:
        """Look every minute, for ever."""
        while True:
            await self.look()
            await self._clock.sleep(LOOK_S)

    async def look(self) -> None:
        """Hold what nodes said against the log, and learn the latest anchor."""
        claims, self._claims = self._claims, {}
        try:
            known, found = await self._store.read(
                lambda session: (
                    facts.find(session, facts.AUDIT_ANCHOR),
                    audit.hashes_at(session, {sequence for sequence, _ in claims}),
                )
            )
            wrong = {key: node_id for key, node_id in claims.items() if found.get(key[0]) != key[1]}
            if wrong:
                await self._store.begin(lambda session: self._write_down(session, wrong, found), ring=False)
        except Unavailable as away:
            log.warning("audit.look_waits", code=away.code)
            self._claims = {**claims, **self._claims}
            return
        if len(self._judged) + len(claims) > _CLAIMS_KNOWN:
            self._judged.clear()
        self._judged.update(claims)
        if known is not None:
            self.current = Anchor(known["sequence"], known["hash"], datetime.fromisoformat(known["at"]))

    def _write_down(self, session: Session, wrong: dict[tuple[int, str], str], found: dict[int, str]) -> None:
        now = self._clock.now()
        before = facts.find(session, facts.AUDIT_CONTRADICTED) or {"open": [], "answered": []}
        told = {(sequence, hash_) for sequence, hash_ in (*before["open"], *before["answered"])}
        room = max(0, _OPEN_AT_MOST - len(before["open"]))
        fresh = dict(sorted((key, node_id) for key, node_id in wrong.items() if key not in told)[:room])
        for (sequence, hash_), node_id in fresh.items():
            log.error("audit.contradicted", sequence=sequence, node_id=node_id)
            audit.append(
                session,
                now=now,
                actor="playout.anchoring",
                verb=CONTRADICTED,
                unit_id=None,
                subject=f"audit/{sequence}",
                detail={"told": hash_, "stands": found.get(sequence), "by": node_id},
            )
        if fresh:
            shown = {**before, "open": [*before["open"], *(list(key) for key in fresh)]}
            facts.put(session, facts.AUDIT_CONTRADICTED, shown, now=now)

    def _append(self, line: str) -> None:
        for path in self._files:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise Unavailable("anchor_unwritable", path=str(path)) from error
