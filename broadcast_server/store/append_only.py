"""Tables whose rows are added and never changed: the database itself refuses, whoever asks.

The statements of a table run after it is made, by a migration or by `create_all`; a later batch operation on it under
SQLite makes the table anew and must run them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import DDL, event

from broadcast_server.store.tables import Base
from broadcast_server.store.tables_approval import ApprovalStepRow, EmergencyConsentRow, TemplateApprovalRow

KEPT: Final[tuple[type[Base], ...]] = (EmergencyConsentRow, TemplateApprovalRow, ApprovalStepRow)


def making(table: str) -> Mapping[str, Sequence[str]]:
    """By dialect: what makes the table append-only."""
    told = f"{table} is append-only"
    return {
        "sqlite": tuple(
            f"CREATE TRIGGER {table}_{word} BEFORE {what} ON {table} BEGIN SELECT RAISE(ABORT, '{told}'); END"
            for what, word in (("UPDATE", "is_not_changed"), ("DELETE", "is_not_deleted"))
        ),
        "postgresql": (
            (
                f"CREATE FUNCTION {table}_is_kept() RETURNS trigger LANGUAGE plpgsql AS"
                f" $$ BEGIN RAISE EXCEPTION '{told}'; END $$"
            ),
            (
                f"CREATE TRIGGER {table}_is_not_changed BEFORE UPDATE OR DELETE ON {table}"
                f" FOR EACH ROW EXECUTE FUNCTION {table}_is_kept()"
            ),
            (
                f"CREATE TRIGGER {table}_is_not_emptied BEFORE TRUNCATE ON {table}"
                f" FOR EACH STATEMENT EXECUTE FUNCTION {table}_is_kept()"
            ),
        ),
    }


def unmaking(table: str) -> Mapping[str, Sequence[str]]:
    """By dialect: the way back."""
    return {
        "sqlite": (f"DROP TRIGGER {table}_is_not_changed", f"DROP TRIGGER {table}_is_not_deleted"),
        "postgresql": (
            f"DROP TRIGGER {table}_is_not_changed ON {table}",
            f"DROP TRIGGER {table}_is_not_emptied ON {table}",
            f"DROP FUNCTION {table}_is_kept()",
        ),
    }


for _row in KEPT:
    for _dialect, _statements in making(_row.__tablename__).items():
        for _statement in _statements:
            event.listen(_row.__table__, "after_create", DDL(_statement).execute_if(dialect=_dialect))  # type: ignore[no-untyped-call]
