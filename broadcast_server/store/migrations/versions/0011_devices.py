"""devices"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_claims",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=32), nullable=True),
        sa.Column("cluster_code", sa.String(length=40), nullable=True),
        sa.Column("claim_key", sa.LargeBinary(), nullable=False),
        sa.Column("open_until", sa.BigInteger(), nullable=True),
        sa.Column("wrong_tries", sa.BigInteger(), nullable=False),
        sa.Column("wrong_since", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("burned_at", sa.BigInteger(), nullable=True),
        sa.Column("node_id", sa.String(length=32), nullable=True),
        sa.Column("voided_at", sa.BigInteger(), nullable=True),
        sa.Column("created_by", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.id"], name=op.f("fk_device_claims_cluster_id")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_device_claims_node_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_device_claims_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_claims")),
    )
    with op.batch_alter_table("device_claims", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_device_claims_cluster_id"), ["cluster_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_claims_node_id"), ["node_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_claims_serial"), ["serial"], unique=False)
        batch_op.create_index(batch_op.f("ix_device_claims_unit_id"), ["unit_id"], unique=False)
        batch_op.create_index(
            "uq_device_claims_serial_awaited",
            ["serial"],
            unique=True,
            sqlite_where=sa.text("burned_at IS NULL AND voided_at IS NULL"),
            postgresql_where=sa.text("burned_at IS NULL AND voided_at IS NULL"),
        )

    op.create_table(
        "node_bindings",
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("order_id", sa.String(length=32), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("code_hash", sa.String(length=64), nullable=False),
        sa.Column("asked_by", sa.String(length=120), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("wrong_tries", sa.BigInteger(), nullable=False),
        sa.Column("asked_since", sa.BigInteger(), nullable=False),
        sa.Column("asked_times", sa.BigInteger(), nullable=False),
        sa.Column("confirmed_at", sa.BigInteger(), nullable=True),
        sa.Column("confirmed_by", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_node_bindings_node_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node_bindings")),
    )
    op.create_table(
        "node_certificates",
        sa.Column("serial_number", sa.String(length=48), nullable=False),
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("nonce", sa.String(length=64), nullable=True),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_until", sa.BigInteger(), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_node_certificates_node_id")),
        sa.PrimaryKeyConstraint("serial_number", name=op.f("pk_node_certificates")),
        sa.UniqueConstraint("node_id", "nonce", name=op.f("uq_node_certificates_node_id_nonce")),
    )
    with op.batch_alter_table("node_certificates", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_node_certificates_node_id"), ["node_id"], unique=False)

    with op.batch_alter_table("enrolment_tokens", schema=None) as batch_op:
        batch_op.add_column(sa.Column("activates", sa.Boolean(), nullable=False, server_default=sa.false()))

    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.add_column(sa.Column("state", sa.String(length=40), nullable=False, server_default="active"))
        batch_op.add_column(sa.Column("state_reason", sa.String(length=300), nullable=True))
        batch_op.add_column(sa.Column("serial", sa.String(length=40), nullable=True))
        batch_op.add_column(sa.Column("version", sa.BigInteger(), nullable=False, server_default="1"))
        batch_op.create_index(batch_op.f("ix_nodes_serial"), ["serial"], unique=False)
    op.execute("UPDATE nodes SET state = 'retired' WHERE retired_at IS NOT NULL")  # the others hang where they sound
    with op.batch_alter_table("enrolment_tokens", schema=None) as batch_op:
        batch_op.alter_column("activates", server_default=None)
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.alter_column("state", server_default=None)
        batch_op.alter_column("version", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_nodes_serial"))
        batch_op.drop_column("version")
        batch_op.drop_column("serial")
        batch_op.drop_column("state_reason")
        batch_op.drop_column("state")

    with op.batch_alter_table("enrolment_tokens", schema=None) as batch_op:
        batch_op.drop_column("activates")

    with op.batch_alter_table("node_certificates", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_node_certificates_node_id"))

    op.drop_table("node_certificates")
    op.drop_table("node_bindings")
    with op.batch_alter_table("device_claims", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_device_claims_serial_awaited",
            sqlite_where=sa.text("burned_at IS NULL AND voided_at IS NULL"),
            postgresql_where=sa.text("burned_at IS NULL AND voided_at IS NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_device_claims_unit_id"))
        batch_op.drop_index(batch_op.f("ix_device_claims_serial"))
        batch_op.drop_index(batch_op.f("ix_device_claims_node_id"))
        batch_op.drop_index(batch_op.f("ix_device_claims_cluster_id"))

    op.drop_table("device_claims")
