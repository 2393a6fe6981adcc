"""Sequence numbers of what is signed: they only rise, whatever is restored or restarted."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from broadcast_server.store.tables import SequenceRow

SIGNED: Final = "signed"
"""The one counter of all that is signed and ordered by number."""


def take(session: Session, name: str, *, above: int = 0, count: int = 1) -> int:
    """The last of `count` fresh numbers of `name`, all greater than any given before and than `above`."""
    row = session.get(SequenceRow, name, with_for_update=True)
    if row is None:
        row = SequenceRow(name=name, value=0, content=None)
        session.add(row)
    row.value = max(row.value, above) + count
    session.flush()
    return row.value


def last(session: Session, name: str) -> int:
    """The number given last; 0 if none was."""
    return session.scalar(select(SequenceRow.value).where(SequenceRow.name == name)) or 0
