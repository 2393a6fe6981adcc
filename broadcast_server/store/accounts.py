"""Rows of how people prove to be themselves: credentials, recovery codes, and the tries that are counted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from broadcast_server.domain import throttle
from broadcast_server.domain.throttle import Bucket, Tries
from broadcast_server.store.people import secret_hash
from broadcast_server.store.tables import UserRow
from broadcast_server.store.tables_identity import CredentialRow, RecoveryCodeRow, TryRow

TRIES_MOST: Final = 50_000
"""Counts kept at once; beyond, the oldest is forgotten. Each cost a hash, so a quarter of an hour of them is fewer."""


def credential_of(session: Session, user_id: str) -> CredentialRow:
    """The person's credential, an empty one if there was none."""
    row = session.get(CredentialRow, user_id)
    if row is None:
        row = CredentialRow(user_id=user_id, must_change=False, totp_step=0)
        session.add(row)
        session.flush()
    return row


def found_by_login(session: Session, login: str) -> tuple[UserRow, CredentialRow | None] | None:
    """The person and the credential; None: nobody of that login."""
    found = session.execute(
        select(UserRow, CredentialRow)
        .outerjoin(CredentialRow, CredentialRow.user_id == UserRow.id)
        .where(UserRow.login == login)
    ).one_or_none()
    return None if found is None else (found[0], found[1])


# -- recovery codes ---------------------------------------------------------------------------------------------------


def put_recovery_codes(session: Session, user_id: str, codes: Sequence[str]) -> None:
    """Replace all of the person's codes, which are given without dashes."""
    session.execute(delete(RecoveryCodeRow).where(RecoveryCodeRow.user_id == user_id))
    session.add_all(RecoveryCodeRow(code_hash=_hash_of(user_id, code), user_id=user_id) for code in codes)
    session.flush()


def use_recovery_code(session: Session, user_id: str, code: str, now: datetime) -> bool:
    """Whether it was a code of the person that had not served; it has now."""
    row = session.get(RecoveryCodeRow, _hash_of(user_id, code))
    if row is None or row.user_id != user_id or row.used_at is not None:
        return False
    row.used_at = now
    session.flush()
    return True


def recovery_codes_left(session: Session, user_id: str) -> int:
    """How many have not served."""
    query = select(func.count()).where(RecoveryCodeRow.user_id == user_id, RecoveryCodeRow.used_at.is_(None))
    return session.scalar(query) or 0


def _hash_of(user_id: str, code: str) -> str:
    return secret_hash(f"{user_id}/{code}")


# -- tries ------------------------------------------------------------------------------------------------------------


def wait(session: Session, buckets: Sequence[Bucket], now: datetime) -> timedelta:
    """How long until all of the buckets let the next try in."""
    return max(throttle.wait(one, _tries(session, one), now) for one in buckets)


def charge(session: Session, buckets: Sequence[Bucket], now: datetime) -> timedelta:
    """Count a try in every bucket, if `wait` is zero; returns `wait`."""
    waiting = wait(session, buckets, now)
    if waiting:
        return waiting
    _forget(session, now)
    for one in buckets:
        counted = throttle.charged(one, _tries(session, one), now)
        row = session.get(TryRow, _key(one))
        if row is None:
            row = TryRow(key=_key(one))
            session.add(row)
        row.failures, row.since, row.next_at = counted.failures, counted.since, counted.next_at
    session.flush()
    return waiting


def failures(session: Session, bucket: Bucket, now: datetime) -> int:
    """Tries counted in the window that runs."""
    tries = _tries(session, bucket)
    return 0 if tries is None or now - tries.since >= throttle.WINDOW else tries.failures


def forgive(session: Session, bucket: Bucket, *, all_of_it: bool) -> None:
    """The try that was counted was right: forget it, or everything before it as well."""
    row = session.get(TryRow, _key(bucket))
    if row is None:
        return
    if all_of_it or row.failures <= 1:
        session.delete(row)
    else:
        row.failures -= 1
    session.flush()


def _tries(session: Session, bucket: Bucket) -> Tries | None:
    row = session.get(TryRow, _key(bucket))
    return None if row is None else Tries(row.failures, row.since, row.next_at)


def _key(bucket: Bucket) -> str:
    return hashlib.sha256(bucket.name.encode()).hexdigest()


def _forget(session: Session, now: datetime) -> None:
    session.execute(delete(TryRow).where(TryRow.since <= now - throttle.WINDOW))
    over = (session.scalar(select(func.count()).select_from(TryRow)) or 0) - TRIES_MOST
    if over >= 0:
        oldest = select(TryRow.key).order_by(TryRow.since, TryRow.key).limit(over + 8)
        session.execute(delete(TryRow).where(TryRow.key.in_(oldest)))
