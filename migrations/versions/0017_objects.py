"""Object storage: buckets, versions of objects, uploads in parts, and access keys of the S3 interface."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
# In the order of bytes, whatever the language of the database is.
KEY = sa.String(length=1024).with_variant(sa.String(length=1024, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "blobs_to_remove",
        sa.Column("blob", sa.String(length=64), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("blob", name=op.f("pk_blobs_to_remove")),
    )
    op.create_index(op.f("ix_blobs_to_remove_due_at"), "blobs_to_remove", ["due_at"], unique=False)
    op.create_table(
        "object_parts",
        sa.Column("upload_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("etag", sa.String(length=64), nullable=False),
        sa.Column("blob", sa.String(length=64), nullable=False),
        sa.Column("seal", sa.String(length=16), nullable=False),
        sa.Column("checksum_algorithm", sa.String(length=16), nullable=False),
        sa.Column("checksum", sa.String(length=96), nullable=False),
        sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("upload_id", "number", name=op.f("pk_object_parts")),
    )
    op.create_index(op.f("ix_object_parts_blob"), "object_parts", ["blob"], unique=False)
    op.create_table(
        "buckets",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("region", sa.String(length=64), nullable=False),
        sa.Column("acl", sa.String(length=32), nullable=False),
        sa.Column("versioning", sa.String(length=32), nullable=False),
        sa.Column("data_events", sa.Boolean(), nullable=False),
        sa.Column("cors_rules", JSON, nullable=False),
        sa.Column("lifecycle_rules", JSON, nullable=False),
        sa.Column("policy", JSON, nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
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
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_buckets_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_buckets_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_buckets")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_buckets_resource_id")),
    )
    op.create_index("ix_buckets_name", "buckets", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_buckets_owner_id"), "buckets", ["owner_id"], unique=False)
    op.create_index("ix_buckets_page", "buckets", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_buckets_project_id"), "buckets", ["project_id"], unique=False)
    op.create_index(op.f("ix_buckets_state"), "buckets", ["state"], unique=False)
    op.create_index(
        "uq_buckets_everywhere",
        "buckets",
        ["name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "uq_buckets_live_name",
        "buckets",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "s3_access_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("sealed_secret", sa.Text(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_ip", sa.String(length=64), nullable=False),
        sa.Column("origin", sa.String(length=96), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_s3_access_keys_project_id_projects")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_s3_access_keys_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_s3_access_keys")),
    )
    op.create_index(op.f("ix_s3_access_keys_origin"), "s3_access_keys", ["origin"], unique=False)
    op.create_index(op.f("ix_s3_access_keys_user_id"), "s3_access_keys", ["user_id"], unique=False)
    op.create_table(
        "bucket_usage",
        sa.Column("bucket_id", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("objects", sa.BigInteger(), nullable=False),
        sa.Column("versions", sa.BigInteger(), nullable=False),
        sa.Column("held_gib", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["bucket_id"], ["buckets.id"], name=op.f("fk_bucket_usage_bucket_id_buckets")),
        sa.PrimaryKeyConstraint("bucket_id", name=op.f("pk_bucket_usage")),
    )
    op.create_table(
        "object_uploads",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("bucket_id", sa.String(length=64), nullable=False),
        sa.Column("key", KEY, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("etag", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("storage_class", sa.String(length=32), nullable=False),
        sa.Column("acl", sa.String(length=32), nullable=False),
        sa.Column("checksum_algorithm", sa.String(length=16), nullable=False),
        sa.Column("checksum_type", sa.String(length=16), nullable=False),
        sa.Column("headers", JSON, nullable=False),
        sa.Column("user_metadata", JSON, nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.ForeignKeyConstraint(["bucket_id"], ["buckets.id"], name=op.f("fk_object_uploads_bucket_id_buckets")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_object_uploads")),
    )
    op.create_index("ix_object_uploads_age", "object_uploads", ["created_at"], unique=False)
    op.create_index("ix_object_uploads_key", "object_uploads", ["bucket_id", "key", "id"], unique=False)
    op.create_table(
        "object_versions",
        sa.Column("bucket_id", sa.String(length=64), nullable=False),
        sa.Column("key", KEY, nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("is_null", sa.Boolean(), nullable=False),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.Column("is_marker", sa.Boolean(), nullable=False),
        sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("etag", sa.String(length=64), nullable=False),
        sa.Column("blob", sa.String(length=64), nullable=False),
        sa.Column("seal", sa.String(length=16), nullable=False),
        sa.Column("upload_id", sa.String(length=64), nullable=True),
        sa.Column("checksum", sa.String(length=96), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("storage_class", sa.String(length=32), nullable=False),
        sa.Column("acl", sa.String(length=32), nullable=False),
        sa.Column("checksum_algorithm", sa.String(length=16), nullable=False),
        sa.Column("checksum_type", sa.String(length=16), nullable=False),
        sa.Column("headers", JSON, nullable=False),
        sa.Column("user_metadata", JSON, nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.ForeignKeyConstraint(["bucket_id"], ["buckets.id"], name=op.f("fk_object_versions_bucket_id_buckets")),
        sa.PrimaryKeyConstraint("bucket_id", "key", "sequence", name=op.f("pk_object_versions")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_object_versions_blob",
        "object_versions",
        ["blob"],
        unique=False,
        sqlite_where=sa.text("blob <> ''"),
        postgresql_where=sa.text("blob <> ''"),
    )
    op.create_index(
        "ix_object_versions_current",
        "object_versions",
        ["bucket_id", "key"],
        unique=True,
        sqlite_where=sa.text("is_current"),
        postgresql_where=sa.text("is_current"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_object_versions_current", table_name="object_versions", sqlite_where=sa.text("is_current"), postgresql_where=sa.text("is_current")
    )
    op.drop_index("ix_object_versions_blob", table_name="object_versions", sqlite_where=sa.text("blob <> ''"), postgresql_where=sa.text("blob <> ''"))
    op.drop_table("object_versions")
    op.drop_index("ix_object_uploads_key", table_name="object_uploads")
    op.drop_index("ix_object_uploads_age", table_name="object_uploads")
    op.drop_table("object_uploads")
    op.drop_table("bucket_usage")
    op.drop_index(op.f("ix_s3_access_keys_user_id"), table_name="s3_access_keys")
    op.drop_index(op.f("ix_s3_access_keys_origin"), table_name="s3_access_keys")
    op.drop_table("s3_access_keys")
    op.drop_index(
        "uq_buckets_live_name", table_name="buckets", sqlite_where=sa.text("deleted_at IS NULL"), postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.drop_index(
        "uq_buckets_everywhere", table_name="buckets", sqlite_where=sa.text("deleted_at IS NULL"), postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.drop_index(op.f("ix_buckets_state"), table_name="buckets")
    op.drop_index(op.f("ix_buckets_project_id"), table_name="buckets")
    op.drop_index("ix_buckets_page", table_name="buckets")
    op.drop_index(op.f("ix_buckets_owner_id"), table_name="buckets")
    op.drop_index("ix_buckets_name", table_name="buckets")
    op.drop_table("buckets")
    op.drop_index(op.f("ix_object_parts_blob"), table_name="object_parts")
    op.drop_table("object_parts")
    op.drop_index(op.f("ix_blobs_to_remove_due_at"), table_name="blobs_to_remove")
    op.drop_table("blobs_to_remove")
