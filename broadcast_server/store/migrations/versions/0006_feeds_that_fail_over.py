"""feeds that fail over"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "feed_substitutes",
        sa.Column("feed_id", sa.String(length=32), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("substitute_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["feed_id"], ["feeds.id"], name=op.f("fk_feed_substitutes_feed_id")),
        sa.ForeignKeyConstraint(["substitute_id"], ["feeds.id"], name=op.f("fk_feed_substitutes_substitute_id")),
        sa.PrimaryKeyConstraint("feed_id", "position", name=op.f("pk_feed_substitutes")),
    )
    with op.batch_alter_table("feed_substitutes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_feed_substitutes_substitute_id"), ["substitute_id"], unique=False)

    op.create_table(
        "push_sessions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("feed_id", sa.String(length=32), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.String(length=120), nullable=True),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("bytes_in", sa.BigInteger(), nullable=False),
        sa.Column("agent", sa.String(length=200), nullable=False),
        sa.Column("address", sa.String(length=120), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["feed_id"], ["feeds.id"], name=op.f("fk_push_sessions_feed_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_push_sessions")),
    )
    with op.batch_alter_table("push_sessions", schema=None) as batch_op:
        batch_op.create_index("ix_push_sessions_feed", ["feed_id", "since"], unique=False)

    op.create_table(
        "relay_spans",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("feed_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("source_id", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(length=120), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("end_reason", sa.String(length=120), nullable=True),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["feed_id"], ["feeds.id"], name=op.f("fk_relay_spans_feed_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_relay_spans")),
    )
    with op.batch_alter_table("relay_spans", schema=None) as batch_op:
        batch_op.create_index("ix_relay_spans_feed", ["feed_id", "since"], unique=False)
        batch_op.create_index(batch_op.f("ix_relay_spans_until"), ["until"], unique=False)

    with op.batch_alter_table("feeds", schema=None) as batch_op:
        batch_op.add_column(sa.Column("filler_id", sa.String(length=32), nullable=True))
        batch_op.add_column(sa.Column("delay_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
        batch_op.add_column(sa.Column("cut_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("cut_by", sa.String(length=120), nullable=True))
        batch_op.add_column(sa.Column("stopped_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("stopped_by", sa.String(length=120), nullable=True))
        batch_op.add_column(sa.Column("stop_reason", sa.String(length=300), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("feeds", schema=None) as batch_op:
        batch_op.drop_column("stop_reason")
        batch_op.drop_column("stopped_by")
        batch_op.drop_column("stopped_at")
        batch_op.drop_column("cut_by")
        batch_op.drop_column("cut_at")
        batch_op.drop_column("delay_ms")
        batch_op.drop_column("filler_id")

    with op.batch_alter_table("relay_spans", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_relay_spans_until"))
        batch_op.drop_index("ix_relay_spans_feed")

    op.drop_table("relay_spans")
    with op.batch_alter_table("push_sessions", schema=None) as batch_op:
        batch_op.drop_index("ix_push_sessions_feed")

    op.drop_table("push_sessions")
    with op.batch_alter_table("feed_substitutes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_feed_substitutes_substitute_id"))

    op.drop_table("feed_substitutes")
