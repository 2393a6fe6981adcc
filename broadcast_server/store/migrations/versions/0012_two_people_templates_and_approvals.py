"""two people, templates and approvals"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "approval_steps",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("subject_kind", sa.String(length=40), nullable=False),
        sa.Column("subject_id", sa.String(length=32), nullable=False),
        sa.Column("step", sa.String(length=40), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("login", sa.String(length=60), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(length=300), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approval_steps")),
    )
    with op.batch_alter_table("approval_steps", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_approval_steps_subject_id"), ["subject_id"], unique=False)

    op.create_table(
        "emergency_templates",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("hazard", sa.String(length=40), nullable=True),
        sa.Column("phrases", sa.JSON(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("voice", sa.String(length=40), nullable=True),
        sa.Column("tone_ms", sa.BigInteger(), nullable=True),
        sa.Column("times", sa.BigInteger(), nullable=True),
        sa.Column("gap_ms", sa.BigInteger(), nullable=True),
        sa.Column("every_min", sa.BigInteger(), nullable=True),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("author_id", sa.String(length=32), nullable=False),
        sa.Column("created_by", sa.String(length=60), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("retired_at", sa.BigInteger(), nullable=True),
        sa.Column("retired_by", sa.String(length=60), nullable=True),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_emergency_templates_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_emergency_templates")),
    )
    with op.batch_alter_table("emergency_templates", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_emergency_templates_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "template_approvals",
        sa.Column("template_id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("login", sa.String(length=60), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["template_id"], ["emergency_templates.id"], name=op.f("fk_template_approvals_template_id")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_template_approvals_user_id")),
        sa.PrimaryKeyConstraint("template_id", "user_id", name=op.f("pk_template_approvals")),
    )
    op.create_table(
        "break_glass_reviews",
        sa.Column("emergency_id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("login", sa.String(length=60), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("reviewer_id", sa.String(length=32), nullable=True),
        sa.Column("reviewed_by", sa.String(length=60), nullable=True),
        sa.Column("reviewed_at", sa.BigInteger(), nullable=True),
        sa.Column("finding", sa.String(length=40), nullable=True),
        sa.Column("note", sa.String(length=300), nullable=True),
        sa.ForeignKeyConstraint(["emergency_id"], ["emergencies.id"], name=op.f("fk_break_glass_reviews_emergency_id")),
        sa.ForeignKeyConstraint(["reviewer_id"], ["users.id"], name=op.f("fk_break_glass_reviews_reviewer_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_break_glass_reviews_unit_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_break_glass_reviews_user_id")),
        sa.PrimaryKeyConstraint("emergency_id", name=op.f("pk_break_glass_reviews")),
    )
    with op.batch_alter_table("break_glass_reviews", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_break_glass_reviews_at"), ["at"], unique=False)
        batch_op.create_index(batch_op.f("ix_break_glass_reviews_due_at"), ["due_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_break_glass_reviews_unit_id"), ["unit_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_break_glass_reviews_user_id"), ["user_id"], unique=False)

    op.create_table(
        "emergency_consents",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("emergency_id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("login", sa.String(length=60), nullable=False),
        sa.Column("role", sa.String(length=40), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("seat", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["emergency_id"], ["emergencies.id"], name=op.f("fk_emergency_consents_emergency_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_emergency_consents_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_emergency_consents")),
    )
    with op.batch_alter_table("emergency_consents", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_emergency_consents_emergency_id"), ["emergency_id"], unique=False)

    with op.batch_alter_table("emergencies", schema=None) as batch_op:
        batch_op.add_column(sa.Column("template_id", sa.String(length=32), nullable=True))

    with op.batch_alter_table("programmes", schema=None) as batch_op:
        batch_op.add_column(sa.Column("submitted_hash", sa.String(length=64), nullable=True))

    with op.batch_alter_table("schedule_exceptions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("waits", sa.Boolean(), server_default=sa.false(), nullable=False))

    with op.batch_alter_table("schedules", schema=None) as batch_op:
        batch_op.add_column(sa.Column("needs_approval", sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.add_column(sa.Column("approved_by", sa.String(length=120), nullable=True))
        batch_op.add_column(sa.Column("approved_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("approved_hash", sa.String(length=64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("schedules", schema=None) as batch_op:
        batch_op.drop_column("approved_hash")
        batch_op.drop_column("approved_at")
        batch_op.drop_column("approved_by")
        batch_op.drop_column("needs_approval")

    with op.batch_alter_table("schedule_exceptions", schema=None) as batch_op:
        batch_op.drop_column("waits")

    with op.batch_alter_table("programmes", schema=None) as batch_op:
        batch_op.drop_column("submitted_hash")

    with op.batch_alter_table("emergencies", schema=None) as batch_op:
        batch_op.drop_column("template_id")

    with op.batch_alter_table("emergency_consents", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_emergency_consents_emergency_id"))

    op.drop_table("emergency_consents")
    with op.batch_alter_table("break_glass_reviews", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_break_glass_reviews_user_id"))
        batch_op.drop_index(batch_op.f("ix_break_glass_reviews_unit_id"))
        batch_op.drop_index(batch_op.f("ix_break_glass_reviews_due_at"))
        batch_op.drop_index(batch_op.f("ix_break_glass_reviews_at"))

    op.drop_table("break_glass_reviews")
    op.drop_table("template_approvals")
    with op.batch_alter_table("emergency_templates", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_emergency_templates_unit_id"))

    op.drop_table("emergency_templates")
    with op.batch_alter_table("approval_steps", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_approval_steps_subject_id"))

    op.drop_table("approval_steps")
