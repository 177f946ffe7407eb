"""How long a token was made for, so that a new secret is for as long."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing was written down of those that are there: what every token had that nobody said otherwise of.
    op.add_column("api_tokens", sa.Column("days", sa.Integer(), nullable=False, server_default="90"))


def downgrade() -> None:
    op.drop_column("api_tokens", "days")
