"""What bounds of connections have refused in a VPC."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kind = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.add_column("vpc_rule_hits", sa.Column("refused", kind, nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("vpc_rule_hits", "refused")
