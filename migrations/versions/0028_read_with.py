"""What is read together is removed together."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("blobs_to_remove", sa.Column("read_with", sa.String(length=64), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("blobs_to_remove", "read_with")
