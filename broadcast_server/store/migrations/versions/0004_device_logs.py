"""device logs"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_forks",
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_device_forks_node_id")),
        sa.PrimaryKeyConstraint("node_id", "line", "digest", name=op.f("pk_device_forks")),
    )
    op.create_table(
        "device_logs",
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("through", sa.BigInteger(), nullable=False),
        sa.Column("highest", sa.BigInteger(), nullable=False),
        sa.Column("forked_at", sa.BigInteger(), nullable=True),
        sa.Column("forked_line", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_device_logs_node_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_device_logs")),
    )
    with op.batch_alter_table("reports", schema=None) as batch_op:
        batch_op.add_column(sa.Column("line", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("previous", sa.String(length=64), nullable=True))
        batch_op.create_unique_constraint(batch_op.f("uq_reports_node_id_line"), ["node_id", "line"])


def downgrade() -> None:
    with op.batch_alter_table("reports", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_reports_node_id_line"), type_="unique")
        batch_op.drop_column("previous")
        batch_op.drop_column("line")

    op.drop_table("device_logs")
    op.drop_table("device_forks")
