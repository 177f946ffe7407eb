"""How many connections the rules of each VPC have let through, as the host counts them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "vpc_rule_hits",
        sa.Column("vpc_id", sa.String(length=64), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("connections", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("vpc_id", name="pk_vpc_rule_hits"),
    )


def downgrade() -> None:
    op.drop_table("vpc_rule_hits")
