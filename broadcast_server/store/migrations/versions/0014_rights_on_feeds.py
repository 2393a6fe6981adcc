"""rights on feeds"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "feed_subscriptions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("feed_id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=True),
        sa.Column("created_by", sa.String(length=60), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_by", sa.String(length=60), nullable=True),
        sa.ForeignKeyConstraint(["feed_id"], ["feeds.id"], name=op.f("fk_feed_subscriptions_feed_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_feed_subscriptions_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feed_subscriptions")),
    )
    with op.batch_alter_table("feed_subscriptions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_feed_subscriptions_feed_id"), ["feed_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_feed_subscriptions_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "push_rights",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("feed_id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=True),
        sa.Column("unit_id", sa.String(length=64), nullable=True),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=True),
        sa.Column("given_by", sa.String(length=60), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["feed_id"], ["feeds.id"], name=op.f("fk_push_rights_feed_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_push_rights_unit_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_push_rights_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_push_rights")),
    )
    with op.batch_alter_table("push_rights", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_push_rights_feed_id"), ["feed_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_push_rights_unit_id"), ["unit_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_push_rights_user_id"), ["user_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("push_rights", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_push_rights_user_id"))
        batch_op.drop_index(batch_op.f("ix_push_rights_unit_id"))
        batch_op.drop_index(batch_op.f("ix_push_rights_feed_id"))

    op.drop_table("push_rights")
    with op.batch_alter_table("feed_subscriptions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_feed_subscriptions_unit_id"))
        batch_op.drop_index(batch_op.f("ix_feed_subscriptions_feed_id"))

    op.drop_table("feed_subscriptions")
