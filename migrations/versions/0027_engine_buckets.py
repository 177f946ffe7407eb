"""Whose a bucket at an external engine is, and whom policies of buckets mean by a name."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

BUCKETS = sa.table("buckets", sa.column("id"), sa.column("policy", sa.JSON().with_variant(postgresql.JSONB(), "postgresql")))
# Who has a name now, if they had it when the policy was set, as far as anybody wrote that down.
WHO = sa.text("""
    SELECT u.id FROM users u, buckets b WHERE b.id = :bucket AND u.username = :name AND u.created_at <= COALESCE(
        (SELECT MAX(a.timestamp) FROM audit_entries a
         WHERE a.action = 'storage.bucket.set_policy' AND a.status = 'success' AND a.resource_id = :bucket), b.updated_at)
""")


def upgrade() -> None:
    op.add_column("engine_buckets", sa.Column("made", sa.String(length=8), nullable=False, server_default=""))
    op.execute("UPDATE engine_buckets SET made = 'made' WHERE told NOT LIKE '!%'")
    # What the engine refused it is told once more, which shows whose the bucket is.
    op.execute("UPDATE engine_buckets SET told = '' WHERE told LIKE '!%'")
    connection = op.get_bind()
    for bucket_id, policy in connection.execute(sa.select(BUCKETS.c.id, BUCKETS.c.policy)).all():
        if policy:
            kept = [{**each, "principals": [_id_of(connection, bucket_id, name) for name in each["principals"]]} for each in policy["statements"]]
            connection.execute(sa.update(BUCKETS).where(BUCKETS.c.id == bucket_id).values(policy={**policy, "statements": kept}))


def _id_of(connection: Any, bucket_id: str, name: str) -> str:
    """What is no id of anybody stands for nobody."""
    found = connection.execute(WHO, {"bucket": bucket_id, "name": name}).scalar()
    return str(found or name)


def downgrade() -> None:
    op.drop_column("engine_buckets", "made")
