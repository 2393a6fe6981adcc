"""What the store knows of time: the instants it has seen, the database's own clock, and what each process says of its
clock.

A process writes one small row every few seconds (`clock/{process}` among the facts). It is the floor below which no
start is believed, the beacon by which other processes compare, and what the front doors show.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from broadcast_server.domain.clock import from_ms
from broadcast_server.store import facts
from broadcast_server.store.tables import AuditRow, FactRow

_PREFIX: Final = "clock/"


def newest_instant(session: Session) -> datetime | None:
    """The latest instant that was written down while the clock was trusted; None in an empty store.

    Audit rows count from the operator's last word on the clock on: what a wrong clock wrote before it is settled.
    """
    word = facts.find(session, facts.CLOCK_TRUST)
    settled = 0 if word is None else int(word["audit"])
    seen = [
        session.scalar(select(func.max(AuditRow.at)).where(AuditRow.sequence > settled)),
        *(from_ms(told["floor_ms"]) for told in beacons(session).values() if told.get("floor_ms") is not None),
    ]
    return max((instant for instant in seen if instant is not None), default=None)


def database_now(session: Session) -> datetime | None:
    """The database server's own clock; None where it is a file of this machine."""
    if session.get_bind().dialect.name != "postgresql":
        return None
    told: datetime | None = session.scalar(text("SELECT clock_timestamp()"))
    return told


def beacons(session: Session) -> dict[str, dict[str, Any]]:
    """What each process said last, by its id, with `seen_at` as it was written."""
    rows = session.scalars(select(FactRow).where(FactRow.name.startswith(_PREFIX)))
    return {row.name.removeprefix(_PREFIX): {**row.value, "seen_at": row.updated_at} for row in rows}


def put_beacon(session: Session, process: str, told: Mapping[str, Any], *, now: datetime) -> None:
    """Say it. `process`: at most 54 characters."""
    facts.put(session, f"{_PREFIX}{process}", dict(told), now=now)


def drop_floors(session: Session) -> None:
    """The operator settled the clock: what was written before is no floor any more, and nobody's beacon."""
    session.execute(delete(FactRow).where(FactRow.name.startswith(_PREFIX)))


def drop_beacons(session: Session, *, before: datetime) -> None:
    """Forget processes that have been gone since before an instant."""
    session.execute(delete(FactRow).where(FactRow.name.startswith(_PREFIX), FactRow.updated_at < before))
