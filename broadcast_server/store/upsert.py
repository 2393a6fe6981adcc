"""Insert-or-update of many rows in one statement, alike on both dialects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from broadcast_server.store.tables import Base


def upsert(session: Session, table: type[Base], rows: Sequence[dict[str, Any]], *, update: Sequence[str] = ()) -> None:
    """Insert `rows` (all with the same columns); where the primary key is there already set `update`, or leave it
    alone.
    """
    if not rows:
        return
    keys = [column.name for column in inspect(table).primary_key]
    make = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = make(table)
    if update:
        values = {name: getattr(statement.excluded, name) for name in update}
        statement = statement.on_conflict_do_update(index_elements=keys, set_=values)
    else:
        statement = statement.on_conflict_do_nothing()
    session.connection().execute(statement, list(rows))
