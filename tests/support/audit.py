"""What somebody with the database's own file or rights can do to the audit log."""

from __future__ import annotations

from broadcast_server.store.session import Store

GUARDS = {
    "sqlite": ("DROP TRIGGER audit_is_not_changed", "DROP TRIGGER audit_is_not_deleted"),
    "postgresql": (
        "DROP TRIGGER audit_is_not_changed ON audit",
        "DROP TRIGGER audit_is_not_emptied ON audit",
        "DROP FUNCTION audit_is_append_only()",
    ),
}
SHUT = {
    "sqlite": (
        "CREATE TRIGGER audit_is_shut BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no room in the log'); END",
    ),
    "postgresql": (
        (
            "CREATE FUNCTION audit_is_shut() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no room in the log'; END $$"
        ),
        "CREATE TRIGGER audit_is_shut BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_is_shut()",
    ),
}
OPEN = {"sqlite": ("DROP TRIGGER audit_is_shut",), "postgresql": ("DROP TRIGGER audit_is_shut ON audit",)}


def take_the_guards_away(store: Store) -> None:
    """From here on the database lets rows of the log be changed and deleted."""
    _do(store, GUARDS)


def shut(store: Store) -> None:
    """The log cannot be written any more; everything else can."""
    _do(store, SHUT)


def open_again(store: Store) -> None:
    """The log can be written again."""
    _do(store, OPEN)


def _do(store: Store, statements: dict[str, tuple[str, ...]]) -> None:
    with store.engine.begin() as raw:
        for statement in statements[store.dialect]:
            raw.exec_driver_sql(statement)
