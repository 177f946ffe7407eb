"""Policies and groups, what tokens may be used for, and what a machine is being rebuilt from."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "iam_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iam_state")),
    )
    op.create_table(
        "iam_groups",
        sa.Column("role", sa.String(length=32), nullable=False),
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
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_iam_groups_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_iam_groups_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iam_groups")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_iam_groups_resource_id")),
    )
    with op.batch_alter_table("iam_groups", schema=None) as batch_op:
        batch_op.create_index("ix_iam_groups_name", ["project_id", "deleted_at", "name", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_iam_groups_owner_id"), ["owner_id"], unique=False)
        batch_op.create_index("ix_iam_groups_page", ["project_id", "deleted_at", "created_at", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_iam_groups_project_id"), ["project_id"], unique=False)
        batch_op.create_index(
            "uq_iam_groups_live_name",
            ["project_id", "name"],
            unique=True,
            sqlite_where=sa.text("deleted_at IS NULL"),
            postgresql_where=sa.text("deleted_at IS NULL"),
        )

    op.create_table(
        "iam_policies",
        sa.Column("document", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
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
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_iam_policies_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_iam_policies_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iam_policies")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_iam_policies_resource_id")),
    )
    with op.batch_alter_table("iam_policies", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_iam_policies_owner_id"), ["owner_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_iam_policies_project_id"), ["project_id"], unique=False)

    op.create_table(
        "iam_attachments",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("policy_id", sa.String(length=64), nullable=False),
        sa.Column("principal_type", sa.String(length=16), nullable=False),
        sa.Column("principal_id", sa.String(length=64), nullable=False),
        sa.Column("created_by", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["policy_id"], ["iam_policies.id"], name=op.f("fk_iam_attachments_policy_id_iam_policies")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iam_attachments")),
    )
    with op.batch_alter_table("iam_attachments", schema=None) as batch_op:
        batch_op.create_index("ix_iam_attachments_principal", ["principal_type", "principal_id"], unique=False)
        batch_op.create_index("uq_iam_attachments", ["policy_id", "principal_type", "principal_id"], unique=True)

    op.create_table(
        "iam_group_members",
        sa.Column("group_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["iam_groups.id"], name=op.f("fk_iam_group_members_group_id_iam_groups")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_iam_group_members_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("group_id", "user_id", name=op.f("pk_iam_group_members")),
    )
    with op.batch_alter_table("iam_group_members", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_iam_group_members_user_id"), ["user_id"], unique=False)

    op.create_table(
        "iam_policy_versions",
        sa.Column("policy_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("document", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["policy_id"], ["iam_policies.id"], name=op.f("fk_iam_policy_versions_policy_id_iam_policies")),
        sa.PrimaryKeyConstraint("policy_id", "number", name=op.f("pk_iam_policy_versions")),
    )
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.add_column(sa.Column("scopes", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False, server_default=sa.text("'[]'")))
        batch_op.add_column(sa.Column("is_active", sa.Boolean(), nullable=False, server_default=sa.true()))
        batch_op.add_column(sa.Column("previous_hash", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("previous_until", sa.DateTime(timezone=True), nullable=True))
        batch_op.create_index(batch_op.f("ix_api_tokens_previous_hash"), ["previous_hash"], unique=False)

    # Columns alone: on SQLite anything else would copy the tables, and dropping the old ones takes what refers to them along.
    op.add_column("instances", sa.Column("rebuild_to_id", sa.String(length=64), nullable=True))
    op.add_column("projects", sa.Column("boundary_policy_id", sa.String(length=64), nullable=True))

    op.bulk_insert(sa.table("iam_state", sa.column("id", sa.Integer), sa.column("revision", sa.Integer)), [{"id": 1, "revision": 0}])


def downgrade() -> None:
    op.drop_column("projects", "boundary_policy_id")
    op.drop_column("instances", "rebuild_to_id")
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_api_tokens_previous_hash"))
        batch_op.drop_column("previous_until")
        batch_op.drop_column("previous_hash")
        batch_op.drop_column("is_active")
        batch_op.drop_column("scopes")

    op.drop_table("iam_policy_versions")
    with op.batch_alter_table("iam_group_members", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_iam_group_members_user_id"))

    op.drop_table("iam_group_members")
    with op.batch_alter_table("iam_attachments", schema=None) as batch_op:
        batch_op.drop_index("uq_iam_attachments")
        batch_op.drop_index("ix_iam_attachments_principal")

    op.drop_table("iam_attachments")
    with op.batch_alter_table("iam_policies", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_iam_policies_project_id"))
        batch_op.drop_index(batch_op.f("ix_iam_policies_owner_id"))

    op.drop_table("iam_policies")
    with op.batch_alter_table("iam_groups", schema=None) as batch_op:
        batch_op.drop_index("uq_iam_groups_live_name", sqlite_where=sa.text("deleted_at IS NULL"), postgresql_where=sa.text("deleted_at IS NULL"))
        batch_op.drop_index(batch_op.f("ix_iam_groups_project_id"))
        batch_op.drop_index("ix_iam_groups_page")
        batch_op.drop_index(batch_op.f("ix_iam_groups_owner_id"))
        batch_op.drop_index("ix_iam_groups_name")

    op.drop_table("iam_groups")
    op.drop_table("iam_state")
