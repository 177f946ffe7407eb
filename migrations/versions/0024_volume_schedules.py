"""Volumes have schedules and measurements; snapshots and images are shared with projects that are named."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None
FIGURES = ("read_ops", "write_ops", "read_bytes", "write_bytes", "read_ns", "write_ns", "used_bytes")


def upgrade() -> None:
    op.add_column("volumes", sa.Column("snapshot_schedule", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=True))
    op.add_column("volumes", sa.Column("next_snapshot_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("volumes", sa.Column("snapshot_problem", sa.Text(), nullable=False, server_default=""))
    op.create_index(op.f("ix_volumes_next_snapshot_at"), "volumes", ["next_snapshot_at"])
    op.add_column("snapshots", sa.Column("scheduled_at", sa.DateTime(timezone=True), nullable=True))
    for name in ("snapshots", "images"):
        op.add_column(name, sa.Column("shared_with", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "volume_metrics",
        sa.Column("volume_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("interval_s", sa.Float(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in FIGURES),
        sa.PrimaryKeyConstraint("volume_id", "at", name=op.f("pk_volume_metrics")),
    )
    op.create_index(op.f("ix_volume_metrics_at"), "volume_metrics", ["at"])
    op.create_table(
        "volume_usage",
        sa.Column("volume_id", sa.String(length=64), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=True),
        sa.Column("at_s", sa.Float(), nullable=True),
        sa.Column("counters", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("volume_id", name=op.f("pk_volume_usage")),
    )


def downgrade() -> None:
    op.drop_table("volume_usage")
    op.drop_index(op.f("ix_volume_metrics_at"), "volume_metrics")
    op.drop_table("volume_metrics")
    for name in ("images", "snapshots"):
        op.drop_column(name, "shared_with")
    op.drop_column("snapshots", "scheduled_at")
    op.drop_index(op.f("ix_volumes_next_snapshot_at"), "volumes")
    for name in ("snapshot_problem", "next_snapshot_at", "snapshot_schedule"):
        op.drop_column("volumes", name)
