"""initial"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=120), nullable=False),
        sa.Column("verb", sa.String(length=60), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=True),
        sa.Column("subject", sa.String(length=160), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("previous_hash", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_audit")),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_at"), ["at"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_subject"), ["subject"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_unit_id"), ["unit_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_verb"), ["verb"], unique=False)

    op.create_table(
        "facts",
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_facts")),
    )
    op.create_table(
        "idempotency",
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=120), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_idempotency")),
    )
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotency_created_at"), ["created_at"], unique=False)

    op.create_table(
        "jobs",
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=True),
        sa.Column("last_at", sa.BigInteger(), nullable=True),
        sa.Column("last_outcome", sa.String(length=200), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_jobs")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("holder", sa.String(length=120), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "plan_bodies",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_plan_bodies")),
    )
    op.create_table(
        "sequences",
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sequences")),
    )
    op.create_table(
        "unit_kinds",
        sa.Column("code", sa.String(length=40), nullable=False),
        sa.Column("name_vi", sa.String(length=120), nullable=False),
        sa.Column("name_en", sa.String(length=120), nullable=False),
        sa.Column("closed_on", sa.Date(), nullable=True),
        sa.PrimaryKeyConstraint("code", name=op.f("pk_unit_kinds")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("login", sa.String(length=60), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("login", name=op.f("uq_users_login")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_tokens_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_tokens_secret_hash")),
    )
    with op.batch_alter_table("tokens", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tokens_user_id"), ["user_id"], unique=False)

    op.create_table(
        "units",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("name_folded", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["kind"], ["unit_kinds.code"], name=op.f("fk_units_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_units")),
    )
    with op.batch_alter_table("units", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_units_name_folded"), ["name_folded"], unique=False)

    op.create_table(
        "alerts",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("level", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("cancelled_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_alerts_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
    )
    with op.batch_alter_table("alerts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_alerts_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "assets",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=200), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("cues", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("keep_until", sa.BigInteger(), nullable=True),
        sa.Column("collected_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_assets_unit_id")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_assets")),
    )
    with op.batch_alter_table("assets", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_assets_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "bulletins",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=300), nullable=False),
        sa.Column("title_folded", sa.String(length=300), nullable=False),
        sa.Column("klass", sa.String(length=40), nullable=False),
        sa.Column("subject", sa.String(length=120), nullable=True),
        sa.Column("valid_from", sa.BigInteger(), nullable=True),
        sa.Column("valid_to", sa.BigInteger(), nullable=True),
        sa.Column("key", sa.String(length=120), nullable=True),
        sa.Column("created_by", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_bulletins_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bulletins")),
    )
    with op.batch_alter_table("bulletins", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_bulletins_key"), ["key"], unique=False)
        batch_op.create_index(batch_op.f("ix_bulletins_title_folded"), ["title_folded"], unique=False)
        batch_op.create_index(batch_op.f("ix_bulletins_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "clusters",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("code", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("name_folded", sa.String(length=120), nullable=False),
        sa.Column("latitude", sa.Float(), nullable=True),
        sa.Column("longitude", sa.Float(), nullable=True),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("retired_at", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_clusters_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clusters")),
        sa.UniqueConstraint("unit_id", "code", name=op.f("uq_clusters_unit_id_code")),
    )
    with op.batch_alter_table("clusters", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_clusters_name_folded"), ["name_folded"], unique=False)
        batch_op.create_index(batch_op.f("ix_clusters_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "enrolment_tokens",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("uses_left", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_enrolment_tokens_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrolment_tokens")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_enrolment_tokens_secret_hash")),
    )
    with op.batch_alter_table("enrolment_tokens", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_enrolment_tokens_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "feeds",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("name_folded", sa.String(length=120), nullable=False),
        sa.Column("tier", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("url", sa.String(length=500), nullable=True),
        sa.Column("mount", sa.String(length=64), nullable=True),
        sa.Column("push_user", sa.String(length=120), nullable=True),
        sa.Column("push_secret_hash", sa.String(length=200), nullable=True),
        sa.Column("credential_version", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("successor_id", sa.String(length=32), nullable=True),
        sa.Column("valid_from", sa.BigInteger(), nullable=True),
        sa.Column("valid_to", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["successor_id"], ["feeds.id"], name=op.f("fk_feeds_successor_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_feeds_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feeds")),
        sa.UniqueConstraint("mount", name=op.f("uq_feeds_mount")),
    )
    with op.batch_alter_table("feeds", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_feeds_name_folded"), ["name_folded"], unique=False)
        batch_op.create_index(batch_op.f("ix_feeds_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "grants",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("role", sa.String(length=40), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_grants_unit_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_grants_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
    )
    with op.batch_alter_table("grants", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_grants_user_id"), ["user_id"], unique=False)

    op.create_table(
        "groups",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_groups_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_groups")),
    )
    with op.batch_alter_table("groups", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_groups_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "policies",
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_policies_unit_id")),
        sa.PrimaryKeyConstraint("unit_id", name=op.f("pk_policies")),
    )
    op.create_table(
        "schedules",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("series_id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("klass", sa.String(length=40), nullable=False),
        sa.Column("level", sa.BigInteger(), nullable=False),
        sa.Column("content_kind", sa.String(length=40), nullable=False),
        sa.Column("content_id", sa.String(length=32), nullable=False),
        sa.Column("language", sa.String(length=3), nullable=False),
        sa.Column("rule", sa.JSON(), nullable=False),
        sa.Column("length_ms", sa.BigInteger(), nullable=True),
        sa.Column("max_wait_ms", sa.BigInteger(), nullable=False),
        sa.Column("late", sa.JSON(), nullable=False),
        sa.Column("tie_order", sa.BigInteger(), nullable=False),
        sa.Column("gain_db", sa.Float(), nullable=False),
        sa.Column("required", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=True),
        sa.Column("key", sa.String(length=120), nullable=True),
        sa.Column("created_by", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_schedules_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
    )
    with op.batch_alter_table("schedules", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_schedules_content_id"), ["content_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_schedules_ends_at"), ["ends_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_schedules_key"), ["key"], unique=False)
        batch_op.create_index(batch_op.f("ix_schedules_series_id"), ["series_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_schedules_starts_at"), ["starts_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_schedules_state"), ["state"], unique=False)
        batch_op.create_index(batch_op.f("ix_schedules_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "stop_alls",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("set_by", sa.String(length=120), nullable=False),
        sa.Column("released_at", sa.BigInteger(), nullable=True),
        sa.Column("released_by", sa.String(length=120), nullable=True),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_stop_alls_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stop_alls")),
    )
    with op.batch_alter_table("stop_alls", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_stop_alls_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "unit_links",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("parent_id", sa.String(length=64), nullable=False),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("valid_to", sa.Date(), nullable=True),
        sa.ForeignKeyConstraint(["parent_id"], ["units.id"], name=op.f("fk_unit_links_parent_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_unit_links_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unit_links")),
    )
    with op.batch_alter_table("unit_links", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_unit_links_parent_id"), ["parent_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_unit_links_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "broadcasts",
        sa.Column("id", sa.String(length=120), nullable=False),
        sa.Column("schedule_id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("klass", sa.String(length=40), nullable=False),
        sa.Column("title", sa.String(length=300), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.Column("feed_id", sa.String(length=32), nullable=True),
        sa.Column("asset_sha256", sa.String(length=64), nullable=True),
        sa.Column("approval", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["feed_id"], ["feeds.id"], name=op.f("fk_broadcasts_feed_id")),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name=op.f("fk_broadcasts_schedule_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_broadcasts_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_broadcasts")),
    )
    with op.batch_alter_table("broadcasts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_broadcasts_ends_at"), ["ends_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_broadcasts_schedule_id"), ["schedule_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_broadcasts_starts_at"), ["starts_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_broadcasts_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "bulletin_versions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("bulletin_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("language", sa.String(length=3), nullable=False),
        sa.Column("media", sa.String(length=40), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("voice", sa.String(length=120), nullable=True),
        sa.Column("asset_sha256", sa.String(length=64), nullable=True),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("approved_by", sa.String(length=120), nullable=True),
        sa.Column("approved_at", sa.BigInteger(), nullable=True),
        sa.Column("approved_hash", sa.String(length=64), nullable=True),
        sa.Column("created_by", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["asset_sha256"], ["assets.sha256"], name=op.f("fk_bulletin_versions_asset_sha256")),
        sa.ForeignKeyConstraint(["bulletin_id"], ["bulletins.id"], name=op.f("fk_bulletin_versions_bulletin_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bulletin_versions")),
        sa.UniqueConstraint(
            "bulletin_id", "language", "number", name=op.f("uq_bulletin_versions_bulletin_id_language_number")
        ),
    )
    with op.batch_alter_table("bulletin_versions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_bulletin_versions_bulletin_id"), ["bulletin_id"], unique=False)

    op.create_table(
        "conflicts",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("schedule_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("subject", sa.String(length=120), nullable=False),
        sa.Column("affects_from", sa.BigInteger(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name=op.f("fk_conflicts_schedule_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_conflicts_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conflicts")),
        sa.UniqueConstraint("schedule_id", "kind", "subject", name=op.f("uq_conflicts_schedule_id_kind_subject")),
    )
    with op.batch_alter_table("conflicts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_conflicts_closed_at"), ["closed_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_conflicts_schedule_id"), ["schedule_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_conflicts_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "feed_offers",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("feed_id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=True),
        sa.Column("basis", sa.String(length=300), nullable=False),
        sa.Column("withdrawn_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["feed_id"], ["feeds.id"], name=op.f("fk_feed_offers_feed_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_feed_offers_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feed_offers")),
    )
    with op.batch_alter_table("feed_offers", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_feed_offers_feed_id"), ["feed_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_feed_offers_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "feed_statuses",
        sa.Column("feed_id", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.String(length=120), nullable=True),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["feed_id"], ["feeds.id"], name=op.f("fk_feed_statuses_feed_id")),
        sa.PrimaryKeyConstraint("feed_id", name=op.f("pk_feed_statuses")),
    )
    op.create_table(
        "group_members",
        sa.Column("group_id", sa.String(length=32), nullable=False),
        sa.Column("cluster_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.id"], name=op.f("fk_group_members_cluster_id")),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name=op.f("fk_group_members_group_id")),
        sa.PrimaryKeyConstraint("group_id", "cluster_id", name=op.f("pk_group_members")),
    )
    with op.batch_alter_table("group_members", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_group_members_cluster_id"), ["cluster_id"], unique=False)

    op.create_table(
        "nodes",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=32), nullable=False),
        sa.Column("public_key", sa.String(length=64), nullable=False),
        sa.Column("hardware", sa.String(length=120), nullable=False),
        sa.Column("firmware", sa.String(length=120), nullable=False),
        sa.Column("broker_password_line", sa.String(length=300), nullable=False),
        sa.Column("asset_token_hash", sa.String(length=64), nullable=False),
        sa.Column("enrolled_at", sa.BigInteger(), nullable=False),
        sa.Column("retired_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.id"], name=op.f("fk_nodes_cluster_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_nodes_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
        sa.UniqueConstraint("asset_token_hash", name=op.f("uq_nodes_asset_token_hash")),
    )
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_nodes_cluster_id"), ["cluster_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_nodes_public_key"), ["public_key"], unique=False)
        batch_op.create_index(batch_op.f("ix_nodes_unit_id"), ["unit_id"], unique=False)
        batch_op.create_index(
            "uq_nodes_public_key_live",
            ["public_key"],
            unique=True,
            sqlite_where=sa.text("retired_at IS NULL"),
            postgresql_where=sa.text("retired_at IS NULL"),
        )

    op.create_table(
        "obligations",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("content_kind", sa.String(length=40), nullable=False),
        sa.Column("content_id", sa.String(length=32), nullable=False),
        sa.Column("schedule_id", sa.String(length=32), nullable=False),
        sa.Column("basis", sa.String(length=300), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name=op.f("fk_obligations_schedule_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_obligations_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_obligations")),
    )
    with op.batch_alter_table("obligations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_obligations_content_id"), ["content_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_obligations_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "programmes",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=300), nullable=False),
        sa.Column("title_folded", sa.String(length=300), nullable=False),
        sa.Column("items", sa.JSON(), nullable=False),
        sa.Column("asset_sha256", sa.String(length=64), nullable=True),
        sa.Column("content_hash", sa.String(length=64), nullable=True),
        sa.Column("approved_by", sa.String(length=120), nullable=True),
        sa.Column("approved_at", sa.BigInteger(), nullable=True),
        sa.Column("approved_hash", sa.String(length=64), nullable=True),
        sa.Column("key", sa.String(length=120), nullable=True),
        sa.Column("created_by", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["asset_sha256"], ["assets.sha256"], name=op.f("fk_programmes_asset_sha256")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_programmes_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_programmes")),
    )
    with op.batch_alter_table("programmes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_programmes_key"), ["key"], unique=False)
        batch_op.create_index(batch_op.f("ix_programmes_title_folded"), ["title_folded"], unique=False)
        batch_op.create_index(batch_op.f("ix_programmes_unit_id"), ["unit_id"], unique=False)

    op.create_table(
        "schedule_exceptions",
        sa.Column("schedule_id", sa.String(length=32), nullable=False),
        sa.Column("occurs_at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("moved_to", sa.BigInteger(), nullable=True),
        sa.Column("length_ms", sa.BigInteger(), nullable=True),
        sa.Column("cut_at", sa.BigInteger(), nullable=True),
        sa.Column("created_by", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name=op.f("fk_schedule_exceptions_schedule_id")),
        sa.PrimaryKeyConstraint("schedule_id", "occurs_at", name=op.f("pk_schedule_exceptions")),
    )
    op.create_table(
        "schedule_targets",
        sa.Column("schedule_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("ref", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name=op.f("fk_schedule_targets_schedule_id")),
        sa.PrimaryKeyConstraint("schedule_id", "kind", "ref", name=op.f("pk_schedule_targets")),
    )
    with op.batch_alter_table("schedule_targets", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_schedule_targets_ref"), ["ref"], unique=False)

    op.create_table(
        "link_spans",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_link_spans_node_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_link_spans")),
    )
    with op.batch_alter_table("link_spans", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_link_spans_node_id"), ["node_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_link_spans_until"), ["until"], unique=False)

    op.create_table(
        "node_plans",
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_until", sa.BigInteger(), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=False),
        sa.Column("acknowledged_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["body_sha256"], ["plan_bodies.sha256"], name=op.f("fk_node_plans_body_sha256")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_node_plans_node_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node_plans")),
    )
    with op.batch_alter_table("node_plans", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_node_plans_body_sha256"), ["body_sha256"], unique=False)

    op.create_table(
        "node_statuses",
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("link", sa.String(length=10), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("plan_sha256", sa.String(length=64), nullable=True),
        sa.Column("highest_epoch", sa.BigInteger(), nullable=False),
        sa.Column("highest_sequence", sa.BigInteger(), nullable=False),
        sa.Column("sounding", sa.String(length=120), nullable=True),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_node_statuses_node_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node_statuses")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=120), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.Column("acknowledged_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_outbox_node_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_outbox_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("node_id", "subject", name=op.f("uq_outbox_node_id_subject")),
    )
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.create_index("ix_outbox_due", ["state", "due_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_outbox_node_id"), ["node_id"], unique=False)

    op.create_table(
        "plays",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("broadcast_id", sa.String(length=120), nullable=False),
        sa.Column("unit_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=32), nullable=False),
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.String(length=120), nullable=True),
        sa.Column("heard_ms", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("underruns", sa.BigInteger(), nullable=False),
        sa.Column("judged_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["broadcast_id"], ["broadcasts.id"], name=op.f("fk_plays_broadcast_id")),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.id"], name=op.f("fk_plays_cluster_id")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_plays_node_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["units.id"], name=op.f("fk_plays_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plays")),
        sa.UniqueConstraint(
            "node_id", "broadcast_id", "starts_at", name=op.f("uq_plays_node_id_broadcast_id_starts_at")
        ),
    )
    with op.batch_alter_table("plays", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_plays_broadcast_id"), ["broadcast_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_plays_cluster_id"), ["cluster_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_plays_ends_at"), ["ends_at"], unique=False)
        batch_op.create_index("ix_plays_unit_start", ["unit_id", "starts_at"], unique=False)

    op.create_table(
        "reports",
        sa.Column("node_id", sa.String(length=32), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("entry_id", sa.String(length=120), nullable=False),
        sa.Column("segment_start", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_reports_node_id")),
        sa.PrimaryKeyConstraint("node_id", "boot_id", "sequence", name=op.f("pk_reports")),
    )
    with op.batch_alter_table("reports", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_reports_entry_id"), ["entry_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("reports", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_reports_entry_id"))

    op.drop_table("reports")
    with op.batch_alter_table("plays", schema=None) as batch_op:
        batch_op.drop_index("ix_plays_unit_start")
        batch_op.drop_index(batch_op.f("ix_plays_ends_at"))
        batch_op.drop_index(batch_op.f("ix_plays_cluster_id"))
        batch_op.drop_index(batch_op.f("ix_plays_broadcast_id"))

    op.drop_table("plays")
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_outbox_node_id"))
        batch_op.drop_index("ix_outbox_due")

    op.drop_table("outbox")
    op.drop_table("node_statuses")
    with op.batch_alter_table("node_plans", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_node_plans_body_sha256"))

    op.drop_table("node_plans")
    with op.batch_alter_table("link_spans", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_link_spans_until"))
        batch_op.drop_index(batch_op.f("ix_link_spans_node_id"))

    op.drop_table("link_spans")
    with op.batch_alter_table("schedule_targets", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_schedule_targets_ref"))

    op.drop_table("schedule_targets")
    op.drop_table("schedule_exceptions")
    with op.batch_alter_table("programmes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_programmes_unit_id"))
        batch_op.drop_index(batch_op.f("ix_programmes_title_folded"))
        batch_op.drop_index(batch_op.f("ix_programmes_key"))

    op.drop_table("programmes")
    with op.batch_alter_table("obligations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_obligations_unit_id"))
        batch_op.drop_index(batch_op.f("ix_obligations_content_id"))

    op.drop_table("obligations")
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_nodes_public_key_live",
            sqlite_where=sa.text("retired_at IS NULL"),
            postgresql_where=sa.text("retired_at IS NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_nodes_unit_id"))
        batch_op.drop_index(batch_op.f("ix_nodes_public_key"))
        batch_op.drop_index(batch_op.f("ix_nodes_cluster_id"))

    op.drop_table("nodes")
    with op.batch_alter_table("group_members", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_group_members_cluster_id"))

    op.drop_table("group_members")
    op.drop_table("feed_statuses")
    with op.batch_alter_table("feed_offers", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_feed_offers_unit_id"))
        batch_op.drop_index(batch_op.f("ix_feed_offers_feed_id"))

    op.drop_table("feed_offers")
    with op.batch_alter_table("conflicts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_conflicts_unit_id"))
        batch_op.drop_index(batch_op.f("ix_conflicts_schedule_id"))
        batch_op.drop_index(batch_op.f("ix_conflicts_closed_at"))

    op.drop_table("conflicts")
    with op.batch_alter_table("bulletin_versions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_bulletin_versions_bulletin_id"))

    op.drop_table("bulletin_versions")
    with op.batch_alter_table("broadcasts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_broadcasts_unit_id"))
        batch_op.drop_index(batch_op.f("ix_broadcasts_starts_at"))
        batch_op.drop_index(batch_op.f("ix_broadcasts_schedule_id"))
        batch_op.drop_index(batch_op.f("ix_broadcasts_ends_at"))

    op.drop_table("broadcasts")
    with op.batch_alter_table("unit_links", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_unit_links_unit_id"))
        batch_op.drop_index(batch_op.f("ix_unit_links_parent_id"))

    op.drop_table("unit_links")
    with op.batch_alter_table("stop_alls", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_stop_alls_unit_id"))

    op.drop_table("stop_alls")
    with op.batch_alter_table("schedules", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_schedules_unit_id"))
        batch_op.drop_index(batch_op.f("ix_schedules_state"))
        batch_op.drop_index(batch_op.f("ix_schedules_starts_at"))
        batch_op.drop_index(batch_op.f("ix_schedules_series_id"))
        batch_op.drop_index(batch_op.f("ix_schedules_key"))
        batch_op.drop_index(batch_op.f("ix_schedules_ends_at"))
        batch_op.drop_index(batch_op.f("ix_schedules_content_id"))

    op.drop_table("schedules")
    op.drop_table("policies")
    with op.batch_alter_table("groups", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_groups_unit_id"))

    op.drop_table("groups")
    with op.batch_alter_table("grants", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_grants_user_id"))

    op.drop_table("grants")
    with op.batch_alter_table("feeds", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_feeds_unit_id"))
        batch_op.drop_index(batch_op.f("ix_feeds_name_folded"))

    op.drop_table("feeds")
    with op.batch_alter_table("enrolment_tokens", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_enrolment_tokens_unit_id"))

    op.drop_table("enrolment_tokens")
    with op.batch_alter_table("clusters", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_clusters_unit_id"))
        batch_op.drop_index(batch_op.f("ix_clusters_name_folded"))

    op.drop_table("clusters")
    with op.batch_alter_table("bulletins", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_bulletins_unit_id"))
        batch_op.drop_index(batch_op.f("ix_bulletins_title_folded"))
        batch_op.drop_index(batch_op.f("ix_bulletins_key"))

    op.drop_table("bulletins")
    with op.batch_alter_table("assets", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_assets_unit_id"))

    op.drop_table("assets")
    with op.batch_alter_table("alerts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_alerts_unit_id"))

    op.drop_table("alerts")
    with op.batch_alter_table("units", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_units_name_folded"))

    op.drop_table("units")
    with op.batch_alter_table("tokens", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_tokens_user_id"))

    op.drop_table("tokens")
    op.drop_table("users")
    op.drop_table("unit_kinds")
    op.drop_table("sequences")
    op.drop_table("plan_bodies")
    op.drop_table("leases")
    op.drop_table("jobs")
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_idempotency_created_at"))

    op.drop_table("idempotency")
    op.drop_table("facts")
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_verb"))
        batch_op.drop_index(batch_op.f("ix_audit_unit_id"))
        batch_op.drop_index(batch_op.f("ix_audit_subject"))
        batch_op.drop_index(batch_op.f("ix_audit_at"))

    op.drop_table("audit")
