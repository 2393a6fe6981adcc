"""Rows of answers given to request keys, so that a repeated request does nothing twice.

A claim (`status` 0) is committed before the work begins; the answer replaces it. A claim that stays says that the
process died in between: nobody knows whether the work was done, so the key is never worked on again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, delete
from sqlalchemy.orm import Session

from broadcast_server.domain.errors import Conflict, Invalid
from broadcast_server.store.tables import IdempotencyRow

CLAIMED = 0
CLAIM_IS_YOUNG = timedelta(minutes=2)
KEPT = timedelta(hours=24)
"""How long an answer is remembered."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered."""

    status: int
    body: dict[str, Any]


def claim(session: Session, *, user_id: str, key: str, request_hash: str, now: datetime) -> Answer | None:
    """None: the key is the caller's to work on. An `Answer`: it was worked on.

    Raises `Invalid("idempotency_key_reused")` where the key belongs to another request, and `Conflict` where the
    same request is under way (`request_in_progress`) or was cut off (`outcome_unknown`).
    """
    row = session.get(IdempotencyRow, (user_id, key))
    if row is not None and row.created_at <= now - KEPT:
        session.delete(row)
        session.flush()
        row = None
    if row is None:
        session.add(
            IdempotencyRow(user_id=user_id, key=key, request_hash=request_hash, status=CLAIMED, body={}, created_at=now)
        )
        return None
    if row.request_hash != request_hash:
        raise Invalid("idempotency_key_reused", field="Idempotency-Key", fix="take_new_key")
    if row.status != CLAIMED:
        return Answer(row.status, row.body)
    if row.created_at > now - CLAIM_IS_YOUNG:
        raise Conflict("request_in_progress", field="Idempotency-Key")
    raise Conflict("outcome_unknown", field="Idempotency-Key", fix="look_before_repeating")


def settle(session: Session, *, user_id: str, key: str, answer: Answer) -> None:
    """Remember the answer."""
    row = session.get_one(IdempotencyRow, (user_id, key))
    row.status, row.body = answer.status, answer.body


def release(session: Session, *, user_id: str, key: str) -> None:
    """The work was refused and changed nothing: the key may be tried again."""
    row = session.get(IdempotencyRow, (user_id, key))
    if row is not None and row.status == CLAIMED:
        session.delete(row)


def purge(session: Session, now: datetime) -> int:
    """Forget answers older than `KEPT`; how many there were."""
    done = session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at <= now - KEPT))
    return cast("CursorResult[Any]", done).rowcount
