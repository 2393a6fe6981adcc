"""emergencies and deliveries"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deliveries",
        sa.Column("subject", sa.String(length=80), nullable=False),
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.String(length=120), nullable=True),
        sa.Column("rounds", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("over_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.Column("received_at", sa.BigInteger(), nullable=True),
        sa.Column("sounding_at", sa.BigInteger(), nullable=True),
        sa.Column("heard_at", sa.BigInteger(), nullable=True),
        sa.Column("cleared_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.id"], name=op.f("fk_deliveries_cluster_id")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_deliveries_node_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_deliveries_unit_id")),
        sa.PrimaryKeyConstraint("subject", "node_id", name=op.f("pk_deliveries")),
    )
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.create_index("ix_deliveries_node", ["node_id", "closed_at"], unique=False)
        batch_op.create_index("ix_deliveries_open", ["closed_at", "due_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_deliveries_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "emergencies",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("units", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("mode", sa.String(length=40), nullable=False),
        sa.Column("nature", sa.String(length=40), nullable=False),
        sa.Column("replaces_id", sa.String(length=32), nullable=True),
        sa.Column("level", sa.BigInteger(), nullable=False),
        sa.Column("hazard", sa.String(length=40), nullable=True),
        sa.Column("phrases", sa.JSON(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("voice", sa.String(length=40), nullable=True),
        sa.Column("bulletin_version_id", sa.String(length=32), nullable=True),
        sa.Column("asset_sha256", sa.String(length=64), nullable=True),
        sa.Column("speech_error", sa.String(length=120), nullable=True),
        sa.Column("tone_ms", sa.BigInteger(), nullable=True),
        sa.Column("times", sa.BigInteger(), nullable=True),
        sa.Column("gap_ms", sa.BigInteger(), nullable=True),
        sa.Column("every_min", sa.BigInteger(), nullable=True),
        sa.Column("expires_min", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=300), nullable=False),
        sa.Column("proposed_by", sa.String(length=120), nullable=False),
        sa.Column("proposed_at", sa.BigInteger(), nullable=False),
        sa.Column("approved_by", sa.String(length=120), nullable=True),
        sa.Column("launched_at", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_by", sa.String(length=120), nullable=True),
        sa.Column("end_reason", sa.String(length=300), nullable=True),
        sa.ForeignKeyConstraint(["asset_sha256"], ["assets.sha256"], name=op.f("fk_emergencies_asset_sha256")),
        sa.ForeignKeyConstraint(
            ["bulletin_version_id"], ["bulletin_versions.id"], name=op.f("fk_emergencies_bulletin_version_id")
        ),
        sa.ForeignKeyConstraint(["replaces_id"], ["emergencies.id"], name=op.f("fk_emergencies_replaces_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_emergencies_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_emergencies")),
    )
    with op.batch_alter_table("emergencies", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_emergencies_expires_at"), ["expires_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_emergencies_proposed_at"), ["proposed_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_emergencies_replaces_id"), ["replaces_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_emergencies_state"), ["state"], unique=False)
        batch_op.create_index(batch_op.f("ix_emergencies_unit_id"), ["unit_id"], unique=False)

    with op.batch_alter_table("alerts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("emergency_id", sa.String(length=32), nullable=True))
        batch_op.create_index(batch_op.f("ix_alerts_emergency_id"), ["emergency_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_alerts_expires_at"), ["expires_at"], unique=False)
        batch_op.create_foreign_key(batch_op.f("fk_alerts_emergency_id"), "emergencies", ["emergency_id"], ["id"])

    with op.batch_alter_table("broadcasts", schema=None) as batch_op:
        batch_op.alter_column("schedule_id", existing_type=sa.VARCHAR(length=32), nullable=True)

    with op.batch_alter_table("stop_alls", schema=None) as batch_op:
        batch_op.add_column(sa.Column("reason", sa.String(length=300), nullable=True))
        batch_op.add_column(sa.Column("release_reason", sa.String(length=300), nullable=True))
        batch_op.create_index(batch_op.f("ix_stop_alls_released_at"), ["released_at"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("stop_alls", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_stop_alls_released_at"))
        batch_op.drop_column("release_reason")
        batch_op.drop_column("reason")

    op.execute("DELETE FROM plays WHERE broadcast_id IN (SELECT id FROM broadcasts WHERE schedule_id IS NULL)")
    op.execute("DELETE FROM broadcasts WHERE schedule_id IS NULL")
    with op.batch_alter_table("broadcasts", schema=None) as batch_op:
        batch_op.alter_column("schedule_id", existing_type=sa.VARCHAR(length=32), nullable=False)

    with op.batch_alter_table("alerts", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_alerts_emergency_id"), type_="foreignkey")
        batch_op.drop_index(batch_op.f("ix_alerts_expires_at"))
        batch_op.drop_index(batch_op.f("ix_alerts_emergency_id"))
        batch_op.drop_column("emergency_id")

    with op.batch_alter_table("emergencies", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_emergencies_unit_id"))
        batch_op.drop_index(batch_op.f("ix_emergencies_state"))
        batch_op.drop_index(batch_op.f("ix_emergencies_replaces_id"))
        batch_op.drop_index(batch_op.f("ix_emergencies_proposed_at"))
        batch_op.drop_index(batch_op.f("ix_emergencies_expires_at"))

    op.drop_table("emergencies")
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_deliveries_unit_id"))
        batch_op.drop_index("ix_deliveries_open")
        batch_op.drop_index("ix_deliveries_node")

    op.drop_table("deliveries")
