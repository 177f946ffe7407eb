"""Limits of users, requests for more, alerts, history, and what is reserved for work under way."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Tables of what has an owner: owners are charged from now on, for what they have already, too.
OWNED = ("instances", "images", "key_pairs", "iam_policies")
DIMENSIONS = ("instances", "cpus", "memory_gb", "gpus", "storage_gb", "images", "key_pairs", "iam_policies")


def upgrade() -> None:
    op.create_table(
        "user_quotas",
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("dimension", sa.String(length=96), nullable=False),
        sa.Column("quota_limit", sa.BigInteger(), nullable=True),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("warning_threshold", sa.Integer(), nullable=False, server_default="80"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_user_quotas_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id", "dimension", name=op.f("pk_user_quotas")),
    )
    op.create_table(
        "quota_requests",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("dimension", sa.String(length=96), nullable=False),
        sa.Column("limit_then", sa.BigInteger(), nullable=True),
        sa.Column("limit_asked", sa.BigInteger(), nullable=False),
        sa.Column("limit_granted", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=False),
        sa.Column("decided_by", sa.String(length=64), nullable=True),
        sa.Column("decided_by_name", sa.String(length=255), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_quota_requests_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quota_requests")),
    )
    op.create_index(op.f("ix_quota_requests_user_id"), "quota_requests", ["user_id"])
    op.create_index("ix_quota_requests_page", "quota_requests", ["state", "created_at", "id"])
    op.create_index(
        "uq_quota_requests_pending", "quota_requests", ["project_id", "dimension"], unique=True,
        sqlite_where=sa.text("state = 'pending'"), postgresql_where=sa.text("state = 'pending'"),
    )  # fmt: skip
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=255), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("resource_type", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("url", sa.String(length=255), nullable=False),
        sa.Column("is_read", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_alerts_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
    )
    op.create_index("ix_alerts_user", "alerts", ["user_id", "created_at", "id"])
    op.create_index(op.f("ix_alerts_created_at"), "alerts", ["created_at"])
    op.create_table(
        "quota_history",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("dimension", sa.String(length=96), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("peak", sa.BigInteger(), nullable=False),
        sa.Column("quota_limit", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_quota_history_project_id_projects"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("project_id", "dimension", "day", name=op.f("pk_quota_history")),
    )
    op.create_index(op.f("ix_quota_history_day"), "quota_history", ["day"])
    # Columns alone: on SQLite anything else would copy the tables.
    op.add_column("quotas", sa.Column("warning_threshold", sa.Integer(), nullable=False, server_default="80"))
    op.add_column("quotas", sa.Column("peak", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("quota_reservations", sa.Column("owner_id", sa.String(length=64), nullable=True))
    op.add_column("quota_reservations", sa.Column("pending", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index(op.f("ix_quota_reservations_owner_id"), "quota_reservations", ["owner_id"])
    op.create_index(
        "ix_quota_reservations_pending", "quota_reservations", ["project_id", "dimension"],
        sqlite_where=sa.text("pending > 0"), postgresql_where=sa.text("pending > 0"),
    )  # fmt: skip
    _charge_owners()


def _charge_owners() -> None:
    op.execute("UPDATE quotas SET peak = used")
    for table in OWNED:
        op.execute(
            f"UPDATE quota_reservations SET owner_id = (SELECT t.owner_id FROM {table} t WHERE t.id = quota_reservations.resource_id) "  # noqa: S608 - names from above
            f"WHERE EXISTS (SELECT 1 FROM {table} t WHERE t.id = quota_reservations.resource_id)"
        )
    names = ", ".join(f"'{name}'" for name in DIMENSIONS)
    op.execute(
        "INSERT INTO user_quotas (user_id, dimension, quota_limit, used) SELECT owner_id, dimension, NULL, SUM(amount) FROM quota_reservations "  # noqa: S608 - likewise
        f"WHERE owner_id IS NOT NULL AND dimension IN ({names}) GROUP BY owner_id, dimension"
    )
    op.execute(
        "UPDATE quota_reservations SET pending = amount "  # noqa: S608 - likewise
        "WHERE resource_id IN (SELECT resource_id FROM jobs WHERE state IN ('queued', 'running', 'retrying') AND kind LIKE '%.create') "
        f"AND dimension IN ({names})"
    )


def downgrade() -> None:
    op.drop_index("ix_quota_reservations_pending", "quota_reservations")
    op.drop_index(op.f("ix_quota_reservations_owner_id"), "quota_reservations")
    op.drop_column("quota_reservations", "pending")
    op.drop_column("quota_reservations", "owner_id")
    op.drop_column("quotas", "peak")
    op.drop_column("quotas", "warning_threshold")
    for name in ("quota_history", "alerts", "quota_requests", "user_quotas"):
        op.drop_table(name)
