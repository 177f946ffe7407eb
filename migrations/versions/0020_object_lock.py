"""Object lock, the public-access block, ownership of objects, and grants one by one."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
HELD = sa.text("(retain_until IS NOT NULL OR legal_hold)")
DESCRIBED = ("object_versions", "object_uploads")


def upgrade() -> None:
    op.add_column("buckets", sa.Column("grants", JSON, nullable=True))
    op.add_column("buckets", sa.Column("object_lock", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("buckets", sa.Column("lock_rule", JSON, nullable=True))
    op.add_column("buckets", sa.Column("public_access_block", JSON, nullable=True))
    # Buckets that are there go on as they were: their lists of access count.
    op.add_column("buckets", sa.Column("ownership", sa.String(length=32), nullable=False, server_default="Unset"))
    for table in DESCRIBED:
        op.add_column(table, sa.Column("grants", JSON, nullable=True))
        op.add_column(table, sa.Column("lock_mode", sa.String(length=16), nullable=False, server_default=""))
        op.add_column(table, sa.Column("retain_until", sa.DateTime(timezone=True), nullable=True))
        op.add_column(table, sa.Column("legal_hold", sa.Boolean(), nullable=True))
    op.create_index("ix_object_versions_held", "object_versions", ["bucket_id"], unique=False, sqlite_where=HELD, postgresql_where=HELD)


def downgrade() -> None:
    op.drop_index("ix_object_versions_held", table_name="object_versions", sqlite_where=HELD, postgresql_where=HELD)
    for table in DESCRIBED:
        for column in ("legal_hold", "retain_until", "lock_mode", "grants"):
            op.drop_column(table, column)
    for column in ("ownership", "public_access_block", "lock_rule", "object_lock", "grants"):
        op.drop_column("buckets", column)
