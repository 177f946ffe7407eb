"""Volumes: their types, volumes, snapshots; an image says from which snapshot it was made."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "volume_types",
        sa.Column("pool", sa.String(length=32), nullable=False),
        sa.Column("default_iops", sa.Integer(), nullable=False),
        sa.Column("max_iops", sa.Integer(), nullable=False),
        sa.Column("default_throughput_mbps", sa.Integer(), nullable=False),
        sa.Column("max_throughput_mbps", sa.Integer(), nullable=False),
        sa.Column("max_size_gb", sa.Integer(), nullable=False),
        sa.Column("hourly_cost_usd", sa.Float(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_volume_types_owner_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_types")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_volume_types_resource_id")),
    )
    op.create_index(op.f("ix_volume_types_owner_id"), "volume_types", ["owner_id"], unique=False)
    op.create_table(
        "snapshots",
        sa.Column("volume_id", sa.String(length=64), nullable=False),
        sa.Column("volume_name", sa.String(length=255), nullable=False),
        sa.Column("size_gb", sa.Integer(), nullable=False),
        sa.Column("volume_type_id", sa.String(length=64), nullable=False),
        sa.Column("copy_of_id", sa.String(length=64), nullable=True),
        sa.Column("image_id", sa.String(length=64), nullable=True),
        sa.Column("retention_days", sa.Integer(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("is_public", sa.Boolean(), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("state_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_snapshots_image_id_images")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_snapshots_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_snapshots_project_id_projects")),
        sa.ForeignKeyConstraint(["volume_type_id"], ["volume_types.id"], name=op.f("fk_snapshots_volume_type_id_volume_types")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_snapshots_resource_id")),
    )
    op.create_index(op.f("ix_snapshots_expires_at"), "snapshots", ["expires_at"], unique=False)
    op.create_index(op.f("ix_snapshots_image_id"), "snapshots", ["image_id"], unique=False)
    op.create_index(op.f("ix_snapshots_owner_id"), "snapshots", ["owner_id"], unique=False)
    op.create_index(op.f("ix_snapshots_project_id"), "snapshots", ["project_id"], unique=False)
    op.create_index(op.f("ix_snapshots_state"), "snapshots", ["state"], unique=False)
    op.create_index(op.f("ix_snapshots_volume_id"), "snapshots", ["volume_id"], unique=False)
    op.create_index(op.f("ix_snapshots_volume_type_id"), "snapshots", ["volume_type_id"], unique=False)
    op.create_table(
        "volumes",
        sa.Column("size_gb", sa.Integer(), nullable=False),
        sa.Column("resize_to_gb", sa.Integer(), nullable=True),
        sa.Column("volume_type_id", sa.String(length=64), nullable=False),
        sa.Column("iops", sa.Integer(), nullable=False),
        sa.Column("throughput_mbps", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.String(length=64), nullable=True),
        sa.Column("attached_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_root", sa.Boolean(), nullable=False),
        sa.Column("delete_on_termination", sa.Boolean(), nullable=False),
        sa.Column("snapshot_id", sa.String(length=64), nullable=True),
        sa.Column("source_volume_id", sa.String(length=64), nullable=True),
        sa.Column("image_id", sa.String(length=64), nullable=True),
        sa.Column("restoring_id", sa.String(length=64), nullable=True),
        sa.Column("trash_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("state_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_volumes_image_id_images")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_volumes_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_volumes_project_id_projects")),
        sa.ForeignKeyConstraint(["volume_type_id"], ["volume_types.id"], name=op.f("fk_volumes_volume_type_id_volume_types")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volumes")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_volumes_resource_id")),
    )
    op.create_index(op.f("ix_volumes_image_id"), "volumes", ["image_id"], unique=False)
    op.create_index(op.f("ix_volumes_instance_id"), "volumes", ["instance_id"], unique=False)
    op.create_index("ix_volumes_name", "volumes", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_volumes_owner_id"), "volumes", ["owner_id"], unique=False)
    op.create_index("ix_volumes_page", "volumes", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_volumes_project_id"), "volumes", ["project_id"], unique=False)
    op.create_index(op.f("ix_volumes_state"), "volumes", ["state"], unique=False)
    op.create_index(op.f("ix_volumes_volume_type_id"), "volumes", ["volume_type_id"], unique=False)
    op.create_index(
        "uq_volumes_live_name",
        "volumes",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.add_column("images", sa.Column("snapshot_id", sa.String(length=64), nullable=True))


# What is charged for rows that the version before does not know.
DIMENSIONS = ("volumes", "volume_gb", "snapshots", "snapshot_gb", "rows:storage.volume", "rows:storage.snapshot", "rows:storage.volume_type")


def downgrade() -> None:
    for table in ("quota_reservations", "quotas", "user_quotas"):
        charged = sa.table(table, sa.column("dimension", sa.String()))
        op.execute(sa.delete(charged).where(charged.c.dimension.in_(DIMENSIONS)))
    op.drop_column("images", "snapshot_id")
    op.drop_table("volumes")
    op.drop_table("snapshots")
    op.drop_table("volume_types")
