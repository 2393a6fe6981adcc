"""What single nodes must acknowledge (orders): sent again with back-off until they do, or until it expires."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import bindparam, exists, select, update
from sqlalchemy.orm import Session

from broadcast_server.store.tables import OutboxRow
from broadcast_server.store.words import OutboxState

OPEN = (OutboxState.PENDING, OutboxState.SENT)

RETRY_AFTER_S = (2, 4, 8, 15, 30)
"""Seconds to the next attempt; the last repeats."""


def find(session: Session, row_id: str) -> OutboxRow | None:
    """One of them."""
    return session.get(OutboxRow, row_id)


def due(session: Session, *, now: datetime, limit: int = 500) -> list[OutboxRow]:
    """What must be sent now, oldest first."""
    return list(
        session.scalars(
            select(OutboxRow)
            .where(OutboxRow.state.in_(OPEN), OutboxRow.due_at <= now, OutboxRow.expires_at > now)
            .order_by(OutboxRow.due_at, OutboxRow.id)
            .limit(limit)
        )
    )


def mark_sent(session: Session, ids: Sequence[str], *, now: datetime) -> None:
    """These left; they are due again unless they are acknowledged."""
    for row in session.scalars(select(OutboxRow).where(OutboxRow.id.in_(ids))):
        wait_s = RETRY_AFTER_S[min(row.attempts, len(RETRY_AFTER_S) - 1)]
        row.attempts += 1
        row.state, row.sent_at, row.due_at = OutboxState.SENT, now, now + timedelta(seconds=wait_s)


def acknowledge(session: Session, done: Collection[tuple[str, str]], *, now: datetime) -> None:
    """The nodes did it: `done` is `(node, id)`, nobody speaks for another. What was given up meanwhile is done too."""
    if not done:
        return
    statement = (
        update(OutboxRow)
        .where(
            OutboxRow.id == bindparam("one"),
            OutboxRow.node_id == bindparam("node"),
            OutboxRow.acknowledged_at.is_(None),
        )
        .values(state=OutboxState.ACKNOWLEDGED, acknowledged_at=now)
    )
    session.connection().execute(statement, [{"one": one, "node": node} for node, one in sorted(done)])


def has_expired(session: Session, *, now: datetime) -> bool:
    """Whether there is something for `expire` to do."""
    return bool(session.scalar(select(exists().where(OutboxRow.state.in_(OPEN), OutboxRow.expires_at <= now))))


def expire(session: Session, *, now: datetime) -> None:
    """What nobody acknowledged in time is given up, visibly."""
    session.execute(
        update(OutboxRow)
        .where(OutboxRow.state.in_(OPEN), OutboxRow.expires_at <= now)
        .values(state=OutboxState.EXPIRED)
    )


def give_up(session: Session, ids: Sequence[str]) -> None:
    """These cannot be sent at all."""
    session.execute(update(OutboxRow).where(OutboxRow.id.in_(ids)).values(state=OutboxState.EXPIRED))
