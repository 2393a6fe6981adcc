"""Rows of people: users, dated grants of a role over a subtree, bearer tokens by the hash of their secret."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from broadcast_server.store import places
from broadcast_server.store.tables import GrantRow, TokenRow, UserRow
from broadcast_server.store.tables_identity import CredentialRow
from broadcast_server.store.words import Role


def secret_hash(secret: str) -> str:
    """Key under which a random secret (≥ 128 bits, so no salt is needed) is looked up."""
    return hashlib.sha256(secret.encode()).hexdigest()


def user_of_login(session: Session, login: str) -> UserRow | None:
    """The user, disabled or not."""
    return session.scalar(select(UserRow).where(UserRow.login == login))


def user_of_token(session: Session, secret: str, now: datetime) -> tuple[UserRow, TokenRow] | None:
    """Whose token this is; None for an unknown, revoked or expired token and for a disabled user."""
    found = session.execute(
        select(UserRow, TokenRow)
        .join(TokenRow, TokenRow.user_id == UserRow.id)
        .where(
            TokenRow.secret_hash == secret_hash(secret),
            TokenRow.revoked_at.is_(None),
            or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > now),
            UserRow.disabled_at.is_(None),
        )
    ).one_or_none()
    return None if found is None else (found[0], found[1])


def _in_force(at: datetime) -> ColumnElement[bool]:
    return and_(GrantRow.valid_from <= at, or_(GrantRow.valid_to.is_(None), GrantRow.valid_to > at))


def grants_at(session: Session, user_id: str, at: datetime) -> list[tuple[Role, str]]:
    """`(role, unit)` of every grant of the user in force at this instant."""
    rows = session.execute(select(GrantRow.role, GrantRow.unit_id).where(GrantRow.user_id == user_id, _in_force(at)))
    return [(role, unit_id) for role, unit_id in rows]


def grants_of(session: Session, user_ids: Sequence[str]) -> list[GrantRow]:
    """Every grant of these users, past ones too, oldest first."""
    return list(
        session.scalars(
            select(GrantRow).where(GrantRow.user_id.in_(user_ids)).order_by(GrantRow.valid_from, GrantRow.id)
        )
    )


def is_empty(session: Session) -> bool:
    """Whether nobody was ever entered."""
    return session.scalar(select(UserRow.id).limit(1)) is None


def has_administrator(session: Session, at: datetime) -> bool:
    """Whether somebody who is not locked out is an administrator of something, and can log in."""
    query = (
        select(UserRow.id)
        .join(GrantRow, GrantRow.user_id == UserRow.id)
        .join(CredentialRow, CredentialRow.user_id == UserRow.id)
        .where(
            GrantRow.role == Role.ADMIN,
            _in_force(at),
            UserRow.disabled_at.is_(None),
            CredentialRow.password_hash.is_not(None),
        )
        .limit(1)
    )
    return session.scalar(query) is not None


def list_users(
    session: Session, roots: frozenset[str] | None, at: datetime, *, after: str | None, limit: int
) -> list[UserRow]:
    """Users holding a grant within `roots` (None: all users), by login, those after `after`."""
    query = select(UserRow).order_by(UserRow.login).limit(limit)
    if after is not None:
        query = query.where(UserRow.login > after)
    if roots is not None:
        inside = places.subtree_query(roots, places.local_date(at))
        query = query.where(UserRow.id.in_(select(GrantRow.user_id).where(GrantRow.unit_id.in_(inside))))
    return list(session.scalars(query))


def tokens_of(session: Session, user_id: str) -> list[TokenRow]:
    """The user's tokens, newest first; secrets are not among them."""
    return list(
        session.scalars(
            select(TokenRow).where(TokenRow.user_id == user_id).order_by(TokenRow.created_at.desc(), TokenRow.id)
        )
    )
