"""Insert-or-update of many rows in one statement, alike on both dialects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Compiled, Dialect, inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from broadcast_server.store.tables import Base


def upsert(session: Session, table: type[Base], rows: Sequence[dict[str, Any]], *, update: Sequence[str] = ()) -> None:
    """Insert `rows` (all with the same columns); where the primary key is there already set `update`, or leave it
    alone.
    """
    if not rows:
        return
    connection = session.connection()
    # What is compiled is taken, which the types do not tell.
    ready = _compiled(connection.dialect, table, tuple(rows[0]), tuple(update))
    connection.execute(ready, list(rows))  # type: ignore[call-overload]


@lru_cache(maxsize=256)
def _compiled(dialect: Dialect, table: type[Base], columns: tuple[str, ...], update: tuple[str, ...]) -> Compiled:
    """The statement, ready to run: SQLAlchemy compiles an upsert anew each time, which costs more than running it."""
    keys = [column.name for column in inspect(table).primary_key]
    make = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
    statement = make(table)
    if update:
        values = {name: getattr(statement.excluded, name) for name in update}
        statement = statement.on_conflict_do_update(index_elements=keys, set_=values)
    else:
        statement = statement.on_conflict_do_nothing()
    return statement.compile(dialect=dialect, column_keys=columns)
