"""What a verification of the audit log covered, signed; what an export holds; what copies have passed over; what somebody ever did."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("to_hash", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("is_whole", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("entries", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("checkpoints", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("broken_id", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("key_id", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("signature", sa.String(length=128), nullable=False, server_default=""),
    ):
        op.add_column("audit_verifications", column)
    json = sa.JSON().with_variant(JSONB(), "postgresql")
    # An export is as its job is: what went wrong is written by the version before only, and the column goes with the next one.
    with op.batch_alter_table("audit_exports") as exports:
        exports.alter_column("error", existing_type=sa.Text(), existing_nullable=False, server_default="")
    op.add_column("audit_exports", sa.Column("covers", json, nullable=False, server_default="{}"))
    op.add_column("audit_streams", sa.Column("passed_over", sa.Text(), nullable=False, server_default=""))
    op.create_index("ix_audit_entries_done", "audit_entries", ["user_id", "action", "seq"])


def downgrade() -> None:
    op.drop_index("ix_audit_entries_done", "audit_entries")
    op.drop_column("audit_streams", "passed_over")
    op.drop_column("audit_exports", "covers")
    with op.batch_alter_table("audit_exports") as exports:
        exports.alter_column("error", existing_type=sa.Text(), existing_nullable=False, server_default=None)
    for name in ("signature", "key_id", "broken_id", "checkpoints", "entries", "is_whole", "to_hash"):
        op.drop_column("audit_verifications", name)
