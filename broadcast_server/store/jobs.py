"""What the named jobs of the alarm clock did and when they ring next."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from broadcast_server.store.tables import JobRow


def plan(session: Session, next_at: Mapping[str, datetime | None]) -> None:
    """These jobs exist, and no others; what they did last is kept."""
    known = {row.name: row for row in session.scalars(select(JobRow))}
    for name in known.keys() - next_at.keys():
        session.delete(known[name])
    for name, at in next_at.items():
        row = known.get(name)
        if row is None:
            session.add(JobRow(name=name, next_at=at, last_at=None, last_outcome=None))
        else:
            row.next_at = at


def last_runs(session: Session) -> dict[str, datetime]:
    """When each job that ever ran did so last."""
    rows = session.execute(select(JobRow.name, JobRow.last_at).where(JobRow.last_at.is_not(None)))
    return {name: at for name, at in rows if at is not None}


def note(session: Session, name: str, at: datetime, outcome: str, next_at: datetime | None) -> None:
    """It ran at `at`, with this outcome."""
    row = session.get(JobRow, name)
    if row is None:
        row = JobRow(name=name)
        session.add(row)
    row.last_at, row.last_outcome, row.next_at = at, outcome[:200], next_at


def listed(session: Session) -> list[JobRow]:
    """All jobs, by name."""
    return list(session.scalars(select(JobRow).order_by(JobRow.name)))
