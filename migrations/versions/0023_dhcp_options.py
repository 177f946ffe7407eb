"""What guests of a VPC are told with their addresses: search domains, time servers and the size of packets."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("search_domains", "ntp_servers"):
        op.add_column("vpcs", sa.Column(name, sa.String(length=255), nullable=False, server_default=""))
    op.add_column("vpcs", sa.Column("mtu", sa.Integer(), nullable=True))


def downgrade() -> None:
    for name in ("mtu", "ntp_servers", "search_domains"):
        op.drop_column("vpcs", name)
