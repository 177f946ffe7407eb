"""Encryption keys of projects with their versions and uses, and what volumes and snapshots are encrypted with."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None
JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "encryption_key_usage",
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("operation", sa.String(length=32), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resource_id", sa.String(length=128), nullable=False),
        sa.Column("source_ip", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "hour", "actor", "operation", "outcome", name=op.f("pk_encryption_key_usage")),
    )
    op.create_index(op.f("ix_encryption_key_usage_hour"), "encryption_key_usage", ["hour"], unique=False)
    op.create_table(
        "encryption_keys",
        sa.Column("key_type", sa.String(length=32), nullable=False),
        sa.Column("algorithm", sa.String(length=32), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("current_version", sa.Integer(), nullable=False),
        sa.Column("rotation_enabled", sa.Boolean(), nullable=False),
        sa.Column("rotation_period_days", sa.Integer(), nullable=False),
        sa.Column("last_rotated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_rotation_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deletion_date", sa.DateTime(timezone=True), nullable=True),
        sa.Column("operations_count", sa.BigInteger(), nullable=False),
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
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("state_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_encryption_keys_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_encryption_keys_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_encryption_keys")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_encryption_keys_resource_id")),
    )
    op.create_index(op.f("ix_encryption_keys_deletion_date"), "encryption_keys", ["deletion_date"], unique=False)
    op.create_index("ix_encryption_keys_name", "encryption_keys", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_encryption_keys_next_rotation_at"), "encryption_keys", ["next_rotation_at"], unique=False)
    op.create_index(op.f("ix_encryption_keys_owner_id"), "encryption_keys", ["owner_id"], unique=False)
    op.create_index("ix_encryption_keys_page", "encryption_keys", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_encryption_keys_project_id"), "encryption_keys", ["project_id"], unique=False)
    op.create_index(op.f("ix_encryption_keys_state"), "encryption_keys", ["state"], unique=False)
    op.create_index(
        "uq_encryption_keys_default",
        "encryption_keys",
        ["project_id"],
        unique=True,
        sqlite_where=sa.text("is_default AND deleted_at IS NULL"),
        postgresql_where=sa.text("is_default AND deleted_at IS NULL"),
    )
    op.create_index(
        "uq_encryption_keys_live_name",
        "encryption_keys",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "encryption_key_versions",
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("material", sa.LargeBinary(), nullable=False),
        sa.Column("master", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=255), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["encryption_keys.id"], name=op.f("fk_encryption_key_versions_key_id_encryption_keys")),
        sa.PrimaryKeyConstraint("key_id", "number", name=op.f("pk_encryption_key_versions")),
    )
    op.create_index(op.f("ix_encryption_key_versions_master"), "encryption_key_versions", ["master"], unique=False)
    op.add_column("snapshots", sa.Column("encryption_enabled", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("snapshots", sa.Column("kms_key_id", sa.String(length=64), nullable=True))
    op.add_column("snapshots", sa.Column("wrapped_key", sa.LargeBinary(), nullable=True))
    op.add_column("snapshots", sa.Column("key_version", sa.Integer(), nullable=True))
    op.create_index(op.f("ix_snapshots_kms_key_id"), "snapshots", ["kms_key_id"], unique=False)
    op.add_column("volumes", sa.Column("encryption_enabled", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("volumes", sa.Column("kms_key_id", sa.String(length=64), nullable=True))
    op.add_column("volumes", sa.Column("wrapped_key", sa.LargeBinary(), nullable=True))
    op.add_column("volumes", sa.Column("key_version", sa.Integer(), nullable=True))
    op.create_index(op.f("ix_volumes_kms_key_id"), "volumes", ["kms_key_id"], unique=False)


# What is charged for rows that the version before does not know.
DIMENSIONS = ("encryption_keys", "rows:security.key")


def downgrade() -> None:
    for table in ("quota_reservations", "quotas", "user_quotas"):
        charged = sa.table(table, sa.column("dimension", sa.String()))
        op.execute(sa.delete(charged).where(charged.c.dimension.in_(DIMENSIONS)))
    op.drop_index(op.f("ix_volumes_kms_key_id"), table_name="volumes")
    op.drop_column("volumes", "key_version")
    op.drop_column("volumes", "wrapped_key")
    op.drop_column("volumes", "kms_key_id")
    op.drop_column("volumes", "encryption_enabled")
    op.drop_index(op.f("ix_snapshots_kms_key_id"), table_name="snapshots")
    op.drop_column("snapshots", "key_version")
    op.drop_column("snapshots", "wrapped_key")
    op.drop_column("snapshots", "kms_key_id")
    op.drop_column("snapshots", "encryption_enabled")
    op.drop_index(op.f("ix_encryption_key_versions_master"), table_name="encryption_key_versions")
    op.drop_table("encryption_key_versions")
    op.drop_index(
        "uq_encryption_keys_live_name",
        table_name="encryption_keys",
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(
        "uq_encryption_keys_default",
        table_name="encryption_keys",
        sqlite_where=sa.text("is_default AND deleted_at IS NULL"),
        postgresql_where=sa.text("is_default AND deleted_at IS NULL"),
    )
    op.drop_index(op.f("ix_encryption_keys_state"), table_name="encryption_keys")
    op.drop_index(op.f("ix_encryption_keys_project_id"), table_name="encryption_keys")
    op.drop_index("ix_encryption_keys_page", table_name="encryption_keys")
    op.drop_index(op.f("ix_encryption_keys_owner_id"), table_name="encryption_keys")
    op.drop_index(op.f("ix_encryption_keys_next_rotation_at"), table_name="encryption_keys")
    op.drop_index("ix_encryption_keys_name", table_name="encryption_keys")
    op.drop_index(op.f("ix_encryption_keys_deletion_date"), table_name="encryption_keys")
    op.drop_table("encryption_keys")
    op.drop_index(op.f("ix_encryption_key_usage_hour"), table_name="encryption_key_usage")
    op.drop_table("encryption_key_usage")
