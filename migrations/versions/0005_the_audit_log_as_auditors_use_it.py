"""An index for each filter of the audit log."""

from alembic import op

revision = "0005"
down_revision = "0002"
branch_labels = None
depends_on = None

# (index, column before the entry's number)
FILTERS = (
    ("user", "user_id"),
    ("username", "username"),
    ("credential", "credential"),
    ("type", "resource_type"),
    ("name", "resource_name"),
    ("status", "status"),
    ("address", "source_ip"),
    ("request", "request_id"),
    ("time", "timestamp"),
)


def upgrade() -> None:
    op.drop_index("ix_audit_entries_timestamp", "audit_entries")
    op.drop_index("ix_audit_entries_user_id", "audit_entries")
    for name, column in FILTERS:
        op.create_index(f"ix_audit_entries_{name}", "audit_entries", [column, "seq"])


def downgrade() -> None:
    for name, _ in reversed(FILTERS):
        op.drop_index(f"ix_audit_entries_{name}", "audit_entries")
    op.create_index("ix_audit_entries_user_id", "audit_entries", ["user_id"])
    op.create_index("ix_audit_entries_timestamp", "audit_entries", ["timestamp"])
