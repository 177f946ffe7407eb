"""How objects, uploads and parts are encrypted, and what buckets say of new ones."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None
WRAPPED = sa.text("kms_key_id IS NOT NULL")
ROWS = ("object_versions", "object_uploads")


def upgrade() -> None:
    for table in ROWS:
        op.add_column(table, sa.Column("encryption", sa.String(length=16), nullable=False, server_default=""))
        op.add_column(table, sa.Column("kms_key_id", sa.String(length=64), nullable=True))
        op.add_column(table, sa.Column("key_version", sa.Integer(), nullable=True))
        op.add_column(table, sa.Column("wrapped_key", sa.LargeBinary(), nullable=True))
        op.add_column(table, sa.Column("customer_check", sa.LargeBinary(), nullable=True))
        op.add_column(table, sa.Column("bucket_key", sa.Boolean(), nullable=False, server_default=sa.false()))
        op.create_index(f"ix_{table}_wrapped", table, ["kms_key_id", "key_version"], unique=False, sqlite_where=WRAPPED, postgresql_where=WRAPPED)
    used = ["kms_key_id", "bucket_id"]
    op.create_index("ix_object_versions_key_used", "object_versions", used, unique=False, sqlite_where=WRAPPED, postgresql_where=WRAPPED)
    op.add_column("object_parts", sa.Column("is_encrypted", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("buckets", sa.Column("encryption_type", sa.String(length=32), nullable=False, server_default="none"))
    op.add_column("buckets", sa.Column("kms_key_id", sa.String(length=64), nullable=True))
    op.add_column("buckets", sa.Column("bucket_key_enabled", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index(op.f("ix_buckets_kms_key_id"), "buckets", ["kms_key_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_buckets_kms_key_id"), table_name="buckets")
    for column in ("bucket_key_enabled", "kms_key_id", "encryption_type"):
        op.drop_column("buckets", column)
    op.drop_column("object_parts", "is_encrypted")
    op.drop_index("ix_object_versions_key_used", table_name="object_versions", sqlite_where=WRAPPED, postgresql_where=WRAPPED)
    for table in ROWS:
        op.drop_index(f"ix_{table}_wrapped", table_name=table, sqlite_where=WRAPPED, postgresql_where=WRAPPED)
        for column in ("bucket_key", "customer_check", "wrapped_key", "key_version", "kms_key_id", "encryption"):
            op.drop_column(table, column)
