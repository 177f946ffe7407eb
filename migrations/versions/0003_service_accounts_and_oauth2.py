"""Service accounts beside people."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Plain: in a batch SQLite would copy the table, and dropping the old one takes what refers to it along.
    op.add_column("users", sa.Column("kind", sa.String(length=16), nullable=False, server_default="person"))


def downgrade() -> None:
    op.drop_column("users", "kind")
