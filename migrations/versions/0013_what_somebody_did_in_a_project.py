"""What somebody did successfully in a project is found with one look, however often they did it elsewhere or failed."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_audit_entries_done", "audit_entries")
    op.create_index("ix_audit_entries_done", "audit_entries", ["user_id", "action", "status", "project_id", "seq"])


def downgrade() -> None:
    op.drop_index("ix_audit_entries_done", "audit_entries")
    op.create_index("ix_audit_entries_done", "audit_entries", ["user_id", "action", "seq"])
