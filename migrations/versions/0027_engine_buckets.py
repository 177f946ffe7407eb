"""What the portal knows of whose a bucket at an external engine is."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("engine_buckets", sa.Column("made", sa.String(length=8), nullable=False, server_default=""))
    op.execute("UPDATE engine_buckets SET made = 'made' WHERE told NOT LIKE '!%'")
    # What the engine refused it is told once more, which shows whose the bucket is.
    op.execute("UPDATE engine_buckets SET told = '' WHERE told LIKE '!%'")


def downgrade() -> None:
    op.drop_column("engine_buckets", "made")
