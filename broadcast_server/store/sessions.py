"""Rows of sign-ins: a person at a browser, from log-in to log-out. (A `session` elsewhere is a stretch of air.)"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, select, update
from sqlalchemy.orm import Session

from broadcast_server.store.people import secret_hash
from broadcast_server.store.tables import UserRow
from broadcast_server.store.tables_identity import CredentialRow, SignInRow

IDLE: Final = timedelta(minutes=30)
"""A sign-in that nobody used for so long is over."""
LONGEST: Final = timedelta(hours=10)
"""And one that is so old, used or not."""
DEVICE_KNOWN: Final = timedelta(days=90)
"""A browser is known for so long after the person's last log-in there."""


def _in_force(now: datetime) -> ColumnElement[bool]:
    return and_(SignInRow.ended_at.is_(None), SignInRow.ends_at > now, SignInRow.seen_at > now - IDLE)


def find(session: Session, secret: str, now: datetime) -> tuple[UserRow, SignInRow, CredentialRow] | None:
    """Whose cookie this is; None: of nobody, ended, expired, or of a disabled user."""
    found = session.execute(
        select(UserRow, SignInRow, CredentialRow)
        .join(SignInRow, SignInRow.user_id == UserRow.id)
        .join(CredentialRow, CredentialRow.user_id == UserRow.id)
        .where(SignInRow.secret_hash == secret_hash(secret), _in_force(now), UserRow.disabled_at.is_(None))
    ).one_or_none()
    return None if found is None else (found[0], found[1], found[2])


def stands(session: Session, sign_in_id: str) -> bool:
    """Whether nobody has ended it; for a line that was opened in time and is in use."""
    query = (
        select(SignInRow.id)
        .join(UserRow, UserRow.id == SignInRow.user_id)
        .where(SignInRow.id == sign_in_id, SignInRow.ended_at.is_(None), UserRow.disabled_at.is_(None))
    )
    return session.scalar(query) is not None


def touch(session: Session, sign_in_id: str, now: datetime) -> None:
    """It is in use."""
    session.execute(update(SignInRow).where(SignInRow.id == sign_in_id).values(seen_at=now))


def is_known_device(session: Session, user_id: str, device: str, now: datetime) -> bool:
    """Whether the person has logged in at this browser before."""
    query = (
        select(SignInRow.id)
        .where(
            SignInRow.user_id == user_id,
            SignInRow.device_hash == secret_hash(device),
            SignInRow.created_at > now - DEVICE_KNOWN,
        )
        .limit(1)
    )
    return session.scalar(query) is not None


def list_of(session: Session, user_id: str, now: datetime) -> list[SignInRow]:
    """The person's sign-ins that are in force, newest first."""
    query = (
        select(SignInRow)
        .where(SignInRow.user_id == user_id, _in_force(now))
        .order_by(SignInRow.created_at.desc(), SignInRow.id)
    )
    return list(session.scalars(query))


def end_all(session: Session, user_id: str, now: datetime, *, but: str | None = None) -> int:
    """End every sign-in of the person except `but`; returns how many ended."""
    rows = list(session.scalars(select(SignInRow).where(SignInRow.user_id == user_id, SignInRow.ended_at.is_(None))))
    ended = [row for row in rows if row.id != but]
    for row in ended:
        row.ended_at = now
    session.flush()
    return sum(1 for row in ended if row.ends_at > now and row.seen_at > now - IDLE)


def forget(session: Session, user_id: str, now: datetime) -> None:
    """Rows of the person that are of no use any more, not even to know a browser by."""
    session.execute(delete(SignInRow).where(SignInRow.user_id == user_id, SignInRow.created_at <= now - DEVICE_KNOWN))
