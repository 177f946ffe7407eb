"""The day that a quota's peak is of, and requests in the order of their decision."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Empty for a peak of before: it counts for the day on which it is next looked at.
    op.add_column("quotas", sa.Column("peak_day", sa.Date(), nullable=True))
    op.create_index("ix_quota_requests_decided", "quota_requests", ["decided_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_quota_requests_decided", "quota_requests")
    op.drop_column("quotas", "peak_day")
