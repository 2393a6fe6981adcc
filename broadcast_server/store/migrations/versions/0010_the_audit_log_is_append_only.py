"""the audit log is append-only

A later batch operation on `audit` under SQLite makes the table anew and must make these triggers anew with it.
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_MAKE = {
    "sqlite": (
        (
            "CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        ),
        (
            "CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        ),
    ),
    "postgresql": (
        (
            "CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        ),
        (
            "CREATE TRIGGER audit_is_not_changed BEFORE UPDATE OR DELETE ON audit"
            " FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()"
        ),
        (
            "CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON audit"
            " FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()"
        ),
    ),
}
_UNDO = {
    "sqlite": ("DROP TRIGGER audit_is_not_changed", "DROP TRIGGER audit_is_not_deleted"),
    "postgresql": (
        "DROP TRIGGER audit_is_not_changed ON audit",
        "DROP TRIGGER audit_is_not_emptied ON audit",
        "DROP FUNCTION audit_is_append_only()",
    ),
}


def upgrade() -> None:
    for statement in _MAKE[op.get_bind().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in _UNDO[op.get_bind().dialect.name]:
        op.execute(statement)
