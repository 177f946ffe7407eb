"""What buckets do besides keeping objects: websites, access logs, notifications, tiers, replication, figures by the hour."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
# In the order of bytes, whatever the language of the database is.
KEY = sa.String(length=1024).with_variant(sa.String(length=1024, collation="C"), "postgresql")
# SQLite counts up in what it calls an integer only.
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("buckets", sa.Column("website", JSON, nullable=True))
    op.add_column("buckets", sa.Column("logging", JSON, nullable=True))
    op.create_table(
        "bucket_hours",
        sa.Column("bucket_id", sa.String(length=64), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("objects", sa.BigInteger(), nullable=False),
        sa.Column("bytes_in", sa.BigInteger(), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["bucket_id"], ["buckets.id"], name=op.f("fk_bucket_hours_bucket_id_buckets")),
        sa.PrimaryKeyConstraint("bucket_id", "hour", name=op.f("pk_bucket_hours")),
    )
    op.create_index(op.f("ix_bucket_hours_hour"), "bucket_hours", ["hour"], unique=False)
    op.add_column("buckets", sa.Column("notifications", JSON, nullable=True))
    op.create_table(
        "webhooks",
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("sealed_secret", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_webhooks_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_webhooks_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_webhooks_resource_id")),
    )
    op.create_index("ix_webhooks_name", "webhooks", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_webhooks_owner_id"), "webhooks", ["owner_id"], unique=False)
    op.create_index("ix_webhooks_page", "webhooks", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_webhooks_project_id"), "webhooks", ["project_id"], unique=False)
    live = sa.text("deleted_at IS NULL")
    op.create_index("uq_webhooks_live_name", "webhooks", ["project_id", "name"], unique=True, sqlite_where=live, postgresql_where=live)
    op.create_table(
        "notices",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("webhook_id", sa.String(length=64), nullable=False),
        sa.Column("bucket_id", sa.String(length=64), nullable=False),
        sa.Column("message", JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("dead_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name=op.f("fk_notices_webhook_id_webhooks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notices")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_notices_turn", "notices", ["webhook_id", "dead_at", "attempts", "id"], unique=False)
    op.add_column("buckets", sa.Column("replication", JSON, nullable=True))
    op.add_column("object_versions", sa.Column("replication", sa.String(length=16), nullable=False, server_default=""))
    op.create_table(
        "bucket_replications",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("bucket_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cursor_key", KEY, nullable=False),
        sa.Column("cursor_sequence", sa.BigInteger(), nullable=False),
        sa.Column("is_caught_up", sa.Boolean(), nullable=False),
        sa.Column("copied", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("synced_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["bucket_id"], ["buckets.id"], name=op.f("fk_bucket_replications_bucket_id_buckets")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bucket_replications")),
        sa.UniqueConstraint("bucket_id", name=op.f("uq_bucket_replications_bucket_id")),
    )
    op.create_table(
        "replica_changes",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("bucket_id", sa.String(length=64), nullable=False),
        sa.Column("key", KEY, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replica_changes")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_replica_changes_bucket_id"), "replica_changes", ["bucket_id"], unique=False)
    op.create_table(
        "tier_moves",
        sa.Column("bucket_id", sa.String(length=64), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("storage_class", sa.String(length=32), nullable=False),
        sa.Column("objects", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["bucket_id"], ["buckets.id"], name=op.f("fk_tier_moves_bucket_id_buckets")),
        sa.PrimaryKeyConstraint("bucket_id", "day", "storage_class", name=op.f("pk_tier_moves")),
    )
    op.create_table(
        "traffic_done",
        sa.Column("file", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("file", name=op.f("pk_traffic_done")),
    )


def downgrade() -> None:
    op.drop_table("traffic_done")
    op.drop_table("tier_moves")
    op.drop_table("replica_changes")
    op.drop_table("bucket_replications")
    op.drop_column("object_versions", "replication")
    op.drop_column("buckets", "replication")
    op.drop_table("notices")
    op.drop_table("webhooks")
    op.drop_column("buckets", "notifications")
    op.drop_index(op.f("ix_bucket_hours_hour"), table_name="bucket_hours")
    op.drop_table("bucket_hours")
    op.drop_column("buckets", "logging")
    op.drop_column("buckets", "website")
