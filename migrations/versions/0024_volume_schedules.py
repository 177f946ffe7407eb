"""Volumes have schedules and measurements; snapshots and images are shared with projects that are named."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0024_volume_schedules"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("volumes", sa.Column("snapshot_schedule", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=True))
    op.add_column("volumes", sa.Column("next_snapshot_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("volumes", sa.Column("snapshot_problem", sa.Text(), nullable=False, server_default=""))
    op.create_index(op.f("ix_volumes_next_snapshot_at"), "volumes", ["next_snapshot_at"])
    op.add_column("snapshots", sa.Column("scheduled_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("snapshots", "scheduled_at")
    op.drop_index(op.f("ix_volumes_next_snapshot_at"), "volumes")
    for name in ("snapshot_problem", "next_snapshot_at", "snapshot_schedule"):
        op.drop_column("volumes", name)
