"""What single nodes must acknowledge (orders): sent again with back-off until they do, or until it expires."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from broadcast_server.store.tables import OutboxRow
from broadcast_server.store.words import OutboxState

RETRY_AFTER_S = (2, 4, 8, 15, 30)
"""Seconds to the next attempt; the last repeats."""


def due(session: Session, *, now: datetime, limit: int = 500) -> list[OutboxRow]:
    """What must be sent now, oldest first."""
    open_states = (OutboxState.PENDING, OutboxState.SENT)
    return list(
        session.scalars(
            select(OutboxRow)
            .where(OutboxRow.state.in_(open_states), OutboxRow.due_at <= now, OutboxRow.expires_at > now)
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


def acknowledge(session: Session, ids: Sequence[str], *, now: datetime) -> None:
    """The nodes did it."""
    session.execute(
        update(OutboxRow)
        .where(OutboxRow.id.in_(ids), OutboxRow.acknowledged_at.is_(None))
        .values(state=OutboxState.ACKNOWLEDGED, acknowledged_at=now)
    )


def expire(session: Session, *, now: datetime) -> None:
    """What nobody acknowledged in time is given up, visibly."""
    session.execute(
        update(OutboxRow)
        .where(OutboxRow.state.in_((OutboxState.PENDING, OutboxState.SENT)), OutboxRow.expires_at <= now)
        .values(state=OutboxState.EXPIRED)
    )
