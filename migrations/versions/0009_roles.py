"""Roles that are assumed, and the sessions in them, which are tokens."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

LIVE = sa.text("deleted_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "iam_roles",
        sa.Column("origin", sa.String(length=32), nullable=False),
        sa.Column("trust_policy", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("max_session_duration_hours", sa.Integer(), nullable=False),
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
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_iam_roles_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_iam_roles_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_iam_roles")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_iam_roles_resource_id")),
    )
    op.create_index(op.f("ix_iam_roles_owner_id"), "iam_roles", ["owner_id"])
    op.create_index(op.f("ix_iam_roles_project_id"), "iam_roles", ["project_id"])
    op.create_index("ix_iam_roles_page", "iam_roles", ["project_id", "deleted_at", "created_at", "id"])
    op.create_index("uq_iam_roles_live_name", "iam_roles", ["project_id", "name"], unique=True, sqlite_where=LIVE, postgresql_where=LIVE)
    op.add_column("api_tokens", sa.Column("role_id", sa.String(length=64), nullable=True))
    op.add_column("api_tokens", sa.Column("origin", sa.String(length=96), nullable=False, server_default=""))
    op.add_column("api_tokens", sa.Column("mfa", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index(op.f("ix_api_tokens_role_id"), "api_tokens", ["role_id"])


def downgrade() -> None:
    # A session in a role is no token of its user: without roles it would be one.
    op.execute("DELETE FROM api_tokens WHERE role_id IS NOT NULL")
    op.drop_index(op.f("ix_api_tokens_role_id"), "api_tokens")
    op.drop_column("api_tokens", "mfa")
    op.drop_column("api_tokens", "origin")
    op.drop_column("api_tokens", "role_id")
    op.execute("DELETE FROM iam_attachments WHERE principal_type = 'role'")
    op.drop_table("iam_roles")
