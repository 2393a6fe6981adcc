"""live sessions"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "live_sessions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("schedule_id", sa.String(length=32), nullable=False),
        sa.Column("entry_id", sa.String(length=120), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("speaker", sa.String(length=120), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("end_reason", sa.String(length=40), nullable=True),
        sa.Column("nodes_planned", sa.BigInteger(), nullable=False),
        sa.Column("heard_ms", sa.BigInteger(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("recording_state", sa.String(length=40), nullable=False),
        sa.Column("recording_sha256", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["recording_sha256"], ["assets.sha256"], name=op.f("fk_live_sessions_recording_sha256")
        ),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name=op.f("fk_live_sessions_schedule_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_live_sessions_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_live_sessions")),
        sa.UniqueConstraint("schedule_id", name=op.f("uq_live_sessions_schedule_id")),
    )
    with op.batch_alter_table("live_sessions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_live_sessions_recording_state"), ["recording_state"], unique=False)
        batch_op.create_index(batch_op.f("ix_live_sessions_state"), ["state"], unique=False)
        batch_op.create_index(batch_op.f("ix_live_sessions_unit_id"), ["unit_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("live_sessions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_live_sessions_unit_id"))
        batch_op.drop_index(batch_op.f("ix_live_sessions_state"))
        batch_op.drop_index(batch_op.f("ix_live_sessions_recording_state"))

    op.drop_table("live_sessions")
