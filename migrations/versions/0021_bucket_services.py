"""What buckets do besides keeping objects: websites, access logs, figures by the hour."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0021"
down_revision = "0017"
branch_labels = None
depends_on = None
JSON = sa.JSON().with_variant(JSONB(), "postgresql")


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
    op.create_table(
        "traffic_done",
        sa.Column("file", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("file", name=op.f("pk_traffic_done")),
    )


def downgrade() -> None:
    op.drop_table("traffic_done")
    op.drop_index(op.f("ix_bucket_hours_hour"), table_name="bucket_hours")
    op.drop_table("bucket_hours")
    op.drop_column("buckets", "logging")
    op.drop_column("buckets", "website")
