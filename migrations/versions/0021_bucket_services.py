"""What buckets do besides keeping objects: websites."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0021"
down_revision = "0017"
branch_labels = None
depends_on = None
JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("buckets", sa.Column("website", JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("buckets", "website")
