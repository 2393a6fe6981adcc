"""The audit log as people meet it: reading it, and answering when a witness contradicts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.places import clean_text
from broadcast_server.domain.errors import Conflict, Refused
from broadcast_server.store import audit, facts, journal, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AuditRow

LONGEST_REASON: Final = 300
ANSWERED_REMEMBERED: Final = 2_000


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which rows: of what happened at units under `unit_id`; by whom; what was done (`noun.` takes all of a noun)."""

    unit_id: str | None = None
    actor: str | None = None
    verb: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: int | None = None
    limit: int = 100


async def list_rows(desk: Desk, actor: Actor, query: AuditQuery) -> Sequence[AuditRow]:
    """The newest first, of the places where the actor may read the log; rows of no place only for the whole tree's.

    Raises as `access.roots`.
    """
    now = desk.clock.now()

    def work(session: Session) -> Sequence[AuditRow]:
        roots = access.roots(session, actor, Action.AUDIT_READ, query.unit_id, at=now)
        mine = None if roots is None else places.subtree_of(session, roots, places.local_date(now))
        return audit.listed(
            session,
            mine,
            actor=query.actor,
            verb=query.verb,
            subject=query.subject,
            since=query.since,
            until=query.until,
            before=query.before,
            limit=query.limit,
        )

    return await desk.store.read(work)


async def take_over(desk: Desk) -> str:
    """Bring into the log what the second journal holds; rung every minute. Raises `Corrupt("journal_broken")`."""
    if desk.journal is None:
        return "no journal"
    rows = await desk.executor.run(desk.journal.read)
    if not rows:
        return "nothing journaled"
    now = desk.clock.now()
    return f"{await desk.store.begin(lambda session: journal.take_over(session, rows, now=now), ring=False)} rows"


async def answer_contradiction(desk: Desk, actor: Actor, reason: str) -> int:
    """Say that a contradiction was looked into; how many anchors it named. For the machine's operator alone.

    Raises `Conflict("audit_not_contradicted")`.
    """
    if not actor.everywhere:
        raise Refused("not_permitted", action="audit_answer")
    now = desk.clock.now()
    kept = clean_text(reason, "reason")[:LONGEST_REASON]

    def work(session: Session) -> int:
        standing = facts.find(session, facts.AUDIT_CONTRADICTED)
        if standing is None or not standing["open"]:
            raise Conflict("audit_not_contradicted")
        number = len(standing["open"])
        answered = {"open": [], "answered": [*standing["answered"], *standing["open"]][-ANSWERED_REMEMBERED:]}
        facts.put(session, facts.AUDIT_CONTRADICTED, answered, now=now)
        detail = {"reason": kept, "anchors": number}
        audit.append(
            session, now=now, actor=actor.login, verb="audit.answer", unit_id=None, subject="audit/log", detail=detail
        )
        return number

    return await desk.store.begin(work)
