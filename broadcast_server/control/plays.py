"""The play log (nhật ký phát) for whoever may read it: lines, broadcasts, and the proof of one broadcast.

Read only. A maintainer must not break: a reader of a commune sees the commune's lines, also of what the province sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.domain.errors import Invalid, NotFound
from broadcast_server.domain.proof import Verdict
from broadcast_server.store import places, plays
from broadcast_server.store.plays import Play, Proof
from broadcast_server.store.session import Session


@dataclass(frozen=True, slots=True)
class PlayQuery:
    """Which lines: of places under `unit_id`, a cluster, a broadcast, a schedule; starts in `[since, until)`."""

    unit_id: str | None = None
    cluster_id: str | None = None
    broadcast_id: str | None = None
    schedule_id: str | None = None
    verdict: Verdict | None = None
    since: datetime | None = None
    until: datetime | None = None
    after: str | None = None
    limit: int = 100


def cursor_of(play: Play | Proof) -> str:
    """Sort key of a line, as text for a cursor."""
    ref = play.id if isinstance(play, Play) else play.broadcast_id
    return f"{play.starts_at.isoformat()} {ref}"


async def list_plays(desk: Desk, actor: Actor, query: PlayQuery) -> list[Play]:
    """Lines of the log the actor may see, the latest first."""
    now = desk.clock.now()
    after = _after(query.after)

    def work(session: Session) -> list[Play]:
        return plays.list_plays(
            session,
            access.roots(session, actor, Action.LOG_READ, query.unit_id, at=now),
            places.local_date(now),
            cluster_id=query.cluster_id,
            broadcast_id=query.broadcast_id,
            schedule_id=query.schedule_id,
            verdict=query.verdict,
            starts_from=query.since,
            starts_before=query.until,
            after=after,
            limit=query.limit,
        )

    return await desk.store.read(work)


async def list_broadcasts(desk: Desk, actor: Actor, query: PlayQuery) -> list[Proof]:
    """Broadcasts with their counts, the latest first; counted over the places the actor may see."""
    now = desk.clock.now()
    after = _after(query.after)

    def work(session: Session) -> list[Proof]:
        roots = access.roots(session, actor, Action.LOG_READ, query.unit_id, at=now)
        on = places.local_date(now)
        ids = plays.broadcast_ids(
            session,
            roots,
            on,
            schedule_id=query.schedule_id,
            starts_from=query.since,
            starts_before=query.until,
            after=after,
            limit=query.limit,
        )
        return plays.proofs_of(session, ids, roots, on)

    return await desk.store.read(work)


async def get_proof(desk: Desk, actor: Actor, broadcast_id: str) -> Proof:
    """The proof of one broadcast, over the places the actor may see. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> Proof:
        roots = access.scope(session, actor, Action.LOG_READ, at=now)
        found = plays.proof_of(session, broadcast_id, roots, places.local_date(now))
        may_see = access.may(session, actor, Action.LOG_READ, found.unit_id, at=now)
        if found.nodes_planned == 0 and not may_see:
            raise NotFound("unknown_broadcast", broadcast=broadcast_id)
        return found

    return await desk.store.read(work)


def _after(cursor: str | None) -> tuple[datetime, str] | None:
    if cursor is None:
        return None
    instant, _, ref = cursor.partition(" ")
    try:
        return datetime.fromisoformat(instant), ref
    except ValueError:
        raise Invalid("cursor_invalid", field="cursor", fix="use_next_of_last_page") from None
