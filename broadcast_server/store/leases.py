"""Who leads: one holder at a time, by a lease that ends by itself, fenced by an epoch that only rises.

A maintainer must not break: (1) the epoch rises with every change of holder, so a leader that slept through its lease
signs with a number that nodes already refuse; (2) a lease is taken over only when its end has come by the clock the
caller brings, or when the caller knows that its holder is dead; a release ends it at once; (3) the row is never
deleted: its epoch is the memory of all that led before.

TTL and renewal: 5 s, renewed every 1.5 s, so that one lost renewal costs nothing and a dead leader 5 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from broadcast_server.domain.errors import Invalid
from broadcast_server.store.tables import LeaseRow

LEADER: Final = "conductor"
"""The lease whose holder plans and signs."""

TTL: Final = timedelta(seconds=5)
RENEW_EVERY_S: Final = 1.5


@dataclass(frozen=True, slots=True)
class Lease:
    """What a holder has in hand; worth nothing from `expires_at` on."""

    name: str
    holder: str
    epoch: int
    expires_at: datetime

    def holds_at(self, now: datetime) -> bool:
        """Whether the holder may still act: `[…, expires_at)`."""
        return now < self.expires_at


def acquire(
    session: Session, name: str, holder: str, *, now: datetime, ttl: timedelta = TTL, inherits: bool = False
) -> Lease | None:
    """The lease, or None while another holds it. `holder`: unique per process start.

    Who holds it already gets it prolonged with the same epoch. `inherits`: the caller knows that whoever else held
    it is dead, and takes it over before its end, with a higher epoch.
    """
    if not holder:
        raise Invalid("holder_missing", field="holder")
    row = session.get(LeaseRow, name)
    if row is None:
        row = LeaseRow(name=name, holder=holder, epoch=1, expires_at=now + ttl)
        session.add(row)
    elif row.holder == holder:
        row.expires_at = now + ttl
    elif now < row.expires_at and not inherits:
        return None
    else:
        row.holder, row.epoch, row.expires_at = holder, row.epoch + 1, now + ttl
    session.flush()
    return _seen(row)


def renew(session: Session, lease: Lease, *, now: datetime, ttl: timedelta = TTL) -> Lease | None:
    """The lease, prolonged; its epoch may have been raised meanwhile. None: it was lost, stop acting at once."""
    row = session.get(LeaseRow, lease.name)
    if row is None or row.holder != lease.holder:
        return None
    row.expires_at = now + ttl
    session.flush()
    return _seen(row)


def release(session: Session, lease: Lease, *, now: datetime) -> None:
    """End it now, so that another need not wait. Nothing happens where it was lost already."""
    row = session.get(LeaseRow, lease.name)
    if row is not None and row.holder == lease.holder:
        row.holder, row.expires_at = "", now
        session.flush()


def raise_above(session: Session, name: str, epoch: int, *, now: datetime) -> int:
    """Make sure that the epoch in force is greater than `epoch`, and return it.

    After a restored backup nodes have seen epochs this database knows nothing of. The holder learns of it by `renew`.
    """
    row = session.get(LeaseRow, name)
    if row is None:
        row = LeaseRow(name=name, holder="", epoch=0, expires_at=now)
        session.add(row)
    row.epoch = max(row.epoch, epoch + 1)
    session.flush()
    return row.epoch


def look(session: Session, name: str) -> Lease | None:
    """The lease as it stands, in force or not; None before anybody ever held it."""
    row = session.get(LeaseRow, name)
    return None if row is None else _seen(row)


def _seen(row: LeaseRow) -> Lease:
    return Lease(row.name, row.holder, row.epoch, row.expires_at)
