"""Collisions of *ưu tiên* as rows: pending until the unit orders them or the declared default does."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from datetime import date, datetime

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import NotFound
from broadcast_server.store import places, plans
from broadcast_server.store.tables import BulletinRow, ScheduleExceptionRow, ScheduleRow, TieRow
from broadcast_server.store.words import ScheduleState, TieState
from speaker_protocol.rules import BulletinClass


def subject_of(entry_ids: Iterable[str]) -> str:
    """The same entries, the same subject."""
    return hashlib.sha256("\n".join(sorted(entry_ids)).encode()).hexdigest()


def tie(session: Session, tie_id: str) -> TieRow:
    """Raises `NotFound`."""
    row = session.get(TieRow, tie_id)
    if row is None:
        raise NotFound("unknown_tie", tie=tie_id)
    return row


def list_ties(
    session: Session,
    roots: Collection[str] | None,
    on: date,
    *,
    state: TieState | None = None,
    after: str | None,
    limit: int,
) -> list[TieRow]:
    """Collisions at units under `roots`, newest first; `after` is the id of the last one seen."""
    query = select(TieRow).order_by(TieRow.id.desc()).limit(limit)
    if roots is not None:
        query = query.where(TieRow.unit_id.in_(places.subtree_query(roots, on)))
    if state is not None:
        query = query.where(TieRow.state == state)
    if after is not None:
        query = query.where(TieRow.id < after)
    return list(session.scalars(query))


def known(session: Session, subjects: Collection[str], now: datetime) -> list[TieRow]:
    """Collisions that are still to come, and those of these subjects, whatever was decided."""
    return list(
        session.scalars(
            select(TieRow).where(or_(TieRow.collides_at > now, TieRow.subject.in_(subjects))).order_by(TieRow.id)
        )
    )


def overdue(session: Session, now: datetime) -> list[TieRow]:
    """Collisions nobody ordered although the deadline has passed."""
    return list(
        session.scalars(
            select(TieRow).where(TieRow.state == TieState.PENDING, TieRow.deadline <= now).order_by(TieRow.id)
        )
    )


def around(session: Session, window: Window) -> list[TieRow]:
    """Collisions inside the window that did not go away by themselves, the latest found first."""
    return list(
        session.scalars(
            select(TieRow)
            .where(
                TieRow.collides_at >= window.start,
                TieRow.collides_at < window.end,
                TieRow.state != TieState.GONE,
            )
            .order_by(TieRow.opened_at.desc(), TieRow.id)
        )
    )


def priority_schedules(session: Session, now: datetime) -> list[str]:
    """Ids of the schedules in force whose ties the commune orders."""
    return list(
        session.scalars(
            select(ScheduleRow.id).where(
                ScheduleRow.klass == BulletinClass.PRIORITY,
                ScheduleRow.state == ScheduleState.ACTIVE,
                or_(ScheduleRow.ends_at.is_(None), ScheduleRow.ends_at > now),
            )
        )
    )


def mark(session: Session) -> tuple[object, ...]:
    """Changes whenever something does that collisions are made of: schedules, their exceptions, what they sound."""
    row = session.execute(
        select(
            select(func.count(ScheduleRow.id)).scalar_subquery(),
            select(func.coalesce(func.sum(ScheduleRow.version), 0)).scalar_subquery(),
            select(func.count(ScheduleExceptionRow.schedule_id)).scalar_subquery(),
            select(func.coalesce(func.sum(BulletinRow.version), 0)).scalar_subquery(),
        )
    ).one()
    return (*row, *plans.fleet_mark(session))
