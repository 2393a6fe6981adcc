"""bulletins sent down"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ties",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("collides_at", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("chosen", sa.JSON(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", sa.String(length=120), nullable=True),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_ties_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ties")),
        sa.UniqueConstraint("unit_id", "subject", name=op.f("uq_ties_unit_id_subject")),
    )
    with op.batch_alter_table("ties", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ties_collides_at"), ["collides_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_ties_state"), ["state"], unique=False)
        batch_op.create_index(batch_op.f("ix_ties_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "sendings",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("bulletin_id", sa.String(length=32), nullable=False),
        sa.Column("version_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("language", sa.String(length=3), nullable=False),
        sa.Column("title", sa.String(length=300), nullable=False),
        sa.Column("klass", sa.String(length=40), nullable=False),
        sa.Column("basis", sa.String(length=300), nullable=False),
        sa.Column("earliest", sa.BigInteger(), nullable=True),
        sa.Column("latest", sa.BigInteger(), nullable=True),
        sa.Column("times", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=True),
        sa.Column("corrects_id", sa.String(length=32), nullable=True),
        sa.Column("note", sa.String(length=300), nullable=True),
        sa.Column("recalled_at", sa.BigInteger(), nullable=True),
        sa.Column("recalled_by", sa.String(length=120), nullable=True),
        sa.Column("created_by", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["bulletin_id"], ["bulletins.id"], name=op.f("fk_sendings_bulletin_id")),
        sa.ForeignKeyConstraint(["corrects_id"], ["sendings.id"], name=op.f("fk_sendings_corrects_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_sendings_unit_id")),
        sa.ForeignKeyConstraint(["version_id"], ["bulletin_versions.id"], name=op.f("fk_sendings_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sendings")),
    )
    with op.batch_alter_table("sendings", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sendings_bulletin_id"), ["bulletin_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_sendings_corrects_id"), ["corrects_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_sendings_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "arrivals",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("sending_id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.String(length=120), nullable=True),
        sa.Column("note", sa.String(length=300), nullable=True),
        sa.Column("received_at", sa.BigInteger(), nullable=True),
        sa.Column("received_by", sa.String(length=120), nullable=True),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", sa.String(length=120), nullable=True),
        sa.Column("schedule_id", sa.String(length=32), nullable=True),
        sa.Column("alert_id", sa.String(length=32), nullable=True),
        sa.Column("sounds_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name=op.f("fk_arrivals_schedule_id")),
        sa.ForeignKeyConstraint(["sending_id"], ["sendings.id"], name=op.f("fk_arrivals_sending_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_arrivals_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_arrivals")),
        sa.UniqueConstraint("sending_id", "unit_id", name=op.f("uq_arrivals_sending_id_unit_id")),
    )
    with op.batch_alter_table("arrivals", schema=None) as batch_op:
        batch_op.create_index("ix_arrivals_inbox", ["unit_id", "state"], unique=False)
        batch_op.create_index(batch_op.f("ix_arrivals_schedule_id"), ["schedule_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_arrivals_state"), ["state"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("arrivals", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_arrivals_state"))
        batch_op.drop_index(batch_op.f("ix_arrivals_schedule_id"))
        batch_op.drop_index("ix_arrivals_inbox")

    op.drop_table("arrivals")
    with op.batch_alter_table("sendings", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_sendings_unit_id"))
        batch_op.drop_index(batch_op.f("ix_sendings_corrects_id"))
        batch_op.drop_index(batch_op.f("ix_sendings_bulletin_id"))

    op.drop_table("sendings")
    with op.batch_alter_table("ties", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_ties_unit_id"))
        batch_op.drop_index(batch_op.f("ix_ties_state"))
        batch_op.drop_index(batch_op.f("ix_ties_collides_at"))

    op.drop_table("ties")
