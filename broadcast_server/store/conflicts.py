"""Coming relays that will not sound because of the feed: found, named, proposed a way out, closed when solved.

Planning finds what is wrong entry by entry (`store.plans.note_conflicts`); here the right to relay is watched far ahead
of the plan, so that an offer's end is known weeks before the silence. A maintainer must not break: it is idempotent, a
conflict that is solved closes by itself, and one that returns opens again under the same row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from broadcast_server.domain.clock import Window
from broadcast_server.store import feeds, places, schedules
from broadcast_server.store.schedules import ScheduledEntry
from broadcast_server.store.tables import ConflictRow, FeedRow, FeedStatusRow, ScheduleRow
from broadcast_server.store.words import ConflictKind, ContentKind, FeedState, ScheduleState

WATCHED: Final = (
    ConflictKind.OFFER_EXPIRES,
    ConflictKind.OFFER_WITHDRAWN,
    ConflictKind.FEED_REVOKED,
    ConflictKind.FEED_DEAD,
)
"""The kinds this file opens and closes; the others belong to planning."""

HORIZON: Final = timedelta(days=30)
_DEAD_MATTERS: Final = timedelta(hours=24)
"""A feed that is dead now puts only the relays of so long in doubt."""


@dataclass(frozen=True, slots=True)
class _Found:
    kind: ConflictKind
    subject: str
    entry: ScheduledEntry
    facts: dict[str, Any]


def open_offer_conflicts(
    session: Session,
    *,
    now: datetime,
    new_id: Callable[[], str],
    horizon: timedelta = HORIZON,
    feed_ids: Collection[str] | None = None,
) -> list[ConflictRow]:
    """Open, refresh and close the conflicts of relays that come within `horizon`; those newly opened.

    One row per schedule, kind and subject (the offer or the feed); `facts` propose the feed's successor:
    `successor_id`, `successor_name`, and whether the unit may relay it already (`successor_offered`).
    """
    watched = _watched(session, now, feed_ids)
    entries = (
        schedules.load_entries(session, Window(now, now + horizon), now, schedule_ids=watched.keys()) if watched else ()
    )
    wanted: dict[tuple[str, ConflictKind, str], _Found] = {}
    for found in _findings(session, entries, now):
        key = (found.entry.schedule_id, found.kind, found.subject)
        if key not in wanted:  # entries come by start: the first one affected
            wanted[key] = found
    of_feeds = select(ConflictRow).where(ConflictRow.kind.in_(WATCHED))
    if feed_ids is not None:  # also those of schedules that were cancelled since
        of_feeds = of_feeds.join(ScheduleRow, ScheduleRow.id == ConflictRow.schedule_id).where(
            ScheduleRow.content_kind == ContentKind.FEED, ScheduleRow.content_id.in_(feed_ids)
        )
    known = {(row.schedule_id, row.kind, row.subject): row for row in session.scalars(of_feeds)}
    opened: list[ConflictRow] = []
    for key, found in wanted.items():
        affects_from = found.entry.entry.start
        facts = found.facts | _successor(session, found.entry, affects_from)
        row = known.get(key)
        if row is None:
            row = ConflictRow(
                id=new_id(),
                unit_id=found.entry.unit_id,
                schedule_id=found.entry.schedule_id,
                kind=found.kind,
                subject=found.subject,
                affects_from=affects_from,
                facts=facts,
                opened_at=now,
                closed_at=None,
            )
            session.add(row)
            opened.append(row)
            continue
        if row.closed_at is not None:
            row.opened_at, row.closed_at = now, None
            opened.append(row)
        row.affects_from, row.facts = affects_from, facts
    for key, row in known.items():
        if key not in wanted and row.closed_at is None:
            row.closed_at = now
    session.flush()
    return opened


def _watched(session: Session, now: datetime, feed_ids: Collection[str] | None) -> dict[str, str]:
    """Feed of every schedule that relays something from now on."""
    query = select(ScheduleRow.id, ScheduleRow.content_id).where(
        ScheduleRow.content_kind == ContentKind.FEED,
        ScheduleRow.state == ScheduleState.ACTIVE,
        or_(ScheduleRow.ends_at.is_(None), ScheduleRow.ends_at > now),
    )
    if feed_ids is not None:
        query = query.where(ScheduleRow.content_id.in_(feed_ids))
    return {schedule_id: feed_id for schedule_id, feed_id in session.execute(query)}  # noqa: C416


def _findings(session: Session, entries: Collection[ScheduledEntry], now: datetime) -> Iterator[_Found]:
    dead = {
        row.feed_id: row for row in session.scalars(select(FeedStatusRow).where(FeedStatusRow.state == FeedState.DEAD))
    }
    for entry in entries:
        blocked = entry.blocked
        if blocked is not None:
            if blocked.kind in WATCHED:
                yield _Found(blocked.kind, blocked.subject, entry, dict(blocked.facts))
            continue
        status = dead.get(entry.content_id)
        if status is not None and entry.entry.start < now + _DEAD_MATTERS:
            facts = {"title": entry.title, "since": status.since.isoformat(), "reason": status.reason}
            yield _Found(ConflictKind.FEED_DEAD, entry.content_id, entry, facts)


def _successor(session: Session, entry: ScheduledEntry, at: datetime) -> dict[str, Any]:
    feed = session.get(FeedRow, entry.content_id)
    successor = None if feed is None or feed.successor_id is None else session.get(FeedRow, feed.successor_id)
    if successor is None:
        return {"successor_id": None}
    return {
        "successor_id": successor.id,
        "successor_name": successor.name,
        "successor_offered": feeds.may_relay(session, successor, entry.unit_id, at),
    }


def list_conflicts(
    session: Session,
    roots: frozenset[str] | None,
    on: date,
    *,
    closed: bool = False,
    feed_id: str | None = None,
    placed_by: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[ConflictRow]:
    """Conflicts of schedules within `roots` by id, those after `after`.

    `closed`: solved ones too; `placed_by`: login of whose schedules alone.
    """
    query = select(ConflictRow).order_by(ConflictRow.id).limit(limit)
    if roots is not None:
        query = query.where(ConflictRow.unit_id.in_(places.subtree_query(roots, on)))
    if not closed:
        query = query.where(ConflictRow.closed_at.is_(None))
    if feed_id is not None:
        query = query.join(ScheduleRow, ScheduleRow.id == ConflictRow.schedule_id).where(
            ScheduleRow.content_kind == ContentKind.FEED, ScheduleRow.content_id == feed_id
        )
    if placed_by is not None:
        placed = select(ScheduleRow.id).where(ScheduleRow.created_by == placed_by)
        query = query.where(ConflictRow.schedule_id.in_(placed))
    if after is not None:
        query = query.where(ConflictRow.id > after)
    return list(session.scalars(query))
