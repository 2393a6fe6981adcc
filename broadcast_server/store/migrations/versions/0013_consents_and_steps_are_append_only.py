"""consents, approvals of templates and steps are append-only

A later batch operation on these tables under SQLite makes them anew and must make these triggers anew with them.
"""

from alembic import op

from broadcast_server.store.append_only import making, unmaking

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_TABLES = ("emergency_consents", "template_approvals", "approval_steps")


def upgrade() -> None:
    for table in _TABLES:
        for statement in making(table)[op.get_bind().dialect.name]:
            op.execute(statement)


def downgrade() -> None:
    for table in _TABLES:
        for statement in unmaking(table)[op.get_bind().dialect.name]:
            op.execute(statement)
