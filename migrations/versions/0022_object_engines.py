"""What an external engine for objects was told of each bucket."""

import sqlalchemy as sa
from alembic import op

import portal.kernel.db

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "engine_buckets",
        sa.Column("bucket_id", sa.String(length=64), nullable=False),
        sa.Column("told", sa.String(length=64), nullable=False),
        sa.Column("told_at", portal.kernel.db.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["bucket_id"], ["buckets.id"], name=op.f("fk_engine_buckets_bucket_id_buckets")),
        sa.PrimaryKeyConstraint("bucket_id", name=op.f("pk_engine_buckets")),
    )


def downgrade() -> None:
    op.drop_table("engine_buckets")
