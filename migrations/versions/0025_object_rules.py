"""Replication of a bucket by several rules, into several buckets."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
BUCKETS = sa.table("buckets", sa.column("id", sa.String), sa.column("replication", JSON))
ONE, EACH = "uq_bucket_replications_bucket_id", "uq_bucket_replications_bucket_id_destination_id"


def _rewrite(table: str, kept: dict[str, Any]) -> None:
    """Name the destination of a bucket's only rule wherever it is not named yet."""
    rows = sa.table(table, sa.column("bucket_id", sa.String), sa.column("destination_id", sa.String))
    for bucket_id, rule in kept.items():
        op.execute(rows.update().where(rows.c.bucket_id == bucket_id).values(destination_id=rule["bucket_id"]))


def upgrade() -> None:
    for table in ("bucket_replications", "replica_changes"):
        op.add_column(table, sa.Column("destination_id", sa.String(length=64), nullable=False, server_default=""))
    found = op.get_bind().execute(sa.select(BUCKETS.c.id, BUCKETS.c.replication).where(BUCKETS.c.replication.is_not(None)))
    kept = {row.id: row.replication for row in found if row.replication}
    for table in ("bucket_replications", "replica_changes"):
        _rewrite(table, kept)
    for bucket_id, rule in kept.items():
        op.execute(BUCKETS.update().where(BUCKETS.c.id == bucket_id).values(replication=[{**rule, "priority": 1, "enabled": True, "tags": {}}]))
    with op.batch_alter_table("bucket_replications") as batch:
        batch.drop_constraint(op.f(ONE), type_="unique")
        batch.create_unique_constraint(op.f(EACH), ["bucket_id", "destination_id"])
    op.create_index("ix_replica_changes_turn", "replica_changes", ["bucket_id", "destination_id", "id"])
    op.create_index("ix_replica_changes_key", "replica_changes", ["bucket_id", "key"])
    op.drop_index(op.f("ix_replica_changes_bucket_id"), table_name="replica_changes")


def downgrade() -> None:
    """Of several rules the one of the highest priority stays."""
    names = ("id", "bucket_id", "bucket_name", "prefix", "delete_markers", "existing")
    kept = {}
    for row in op.get_bind().execute(sa.select(BUCKETS.c.id, BUCKETS.c.replication).where(BUCKETS.c.replication.is_not(None))).all():
        if row.replication:
            kept[row.id] = {name: row.replication[0][name] for name in names}
            op.execute(BUCKETS.update().where(BUCKETS.c.id == row.id).values(replication=kept[row.id]))
    for table in ("replica_changes", "bucket_replications"):
        rows = sa.table(table, sa.column("bucket_id", sa.String), sa.column("destination_id", sa.String))
        for bucket_id, rule in kept.items():
            op.execute(rows.delete().where(rows.c.bucket_id == bucket_id, rows.c.destination_id != rule["bucket_id"]))
    op.create_index(op.f("ix_replica_changes_bucket_id"), "replica_changes", ["bucket_id"])
    for name in ("ix_replica_changes_key", "ix_replica_changes_turn"):
        op.drop_index(name, table_name="replica_changes")
    with op.batch_alter_table("bucket_replications") as batch:
        batch.drop_constraint(op.f(EACH), type_="unique")
        batch.create_unique_constraint(op.f(ONE), ["bucket_id"])
    for table in ("replica_changes", "bucket_replications"):
        op.drop_column(table, "destination_id")
