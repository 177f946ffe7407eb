"""Sessions that programs hold: until when their access token lasts, and their refresh tokens, used ones among them."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("access_expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "session_refresh_tokens",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.session_id"], name=op.f("fk_session_refresh_tokens_session_id_sessions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_session_refresh_tokens")),
    )
    op.create_index(op.f("ix_session_refresh_tokens_session_id"), "session_refresh_tokens", ["session_id"])


def downgrade() -> None:
    op.drop_table("session_refresh_tokens")
    # A session of a program would be one of a browser without it.
    op.execute("DELETE FROM sessions WHERE access_expires_at IS NOT NULL")
    op.drop_column("sessions", "access_expires_at")
