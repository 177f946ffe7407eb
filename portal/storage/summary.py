"""How much a project keeps, by kind of storage."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select

from portal.kernel.authz import reach
from portal.kernel.context import Context
from portal.storage.object_models import Bucket, BucketUsage
from portal.storage.volume_metrics import VolumeUsage
from portal.storage.volume_models import Snapshot, Volume, VolumeType

GIB = 1 << 30
HOURS = 730


def storage_summary(ctx: Context) -> Mapping[str, Any]:
    """Counts and bytes of what the caller may see in the current project; what it costs a month by the prices of types, None where none has one."""
    buckets, objects, object_bytes = _sums(
        ctx, Bucket, func.count(BucketUsage.bucket_id), func.sum(BucketUsage.objects), func.sum(BucketUsage.size_bytes)
    )
    volumes, volume_gb, used_bytes, hourly = _sums(
        ctx, Volume, func.count(Volume.id), func.sum(Volume.size_gb), func.sum(VolumeUsage.used_bytes), func.sum(Volume.size_gb * VolumeType.hourly_cost_usd)
    )  # fmt: skip
    snapshots, snapshot_gb = _sums(ctx, Snapshot, func.count(Snapshot.id), func.sum(Snapshot.size_gb))
    return {
        "buckets": int(buckets), "objects": int(objects), "object_bytes": int(object_bytes), "volumes": int(volumes), "volume_gb": int(volume_gb),
        "volume_used_bytes": int(used_bytes), "snapshots": int(snapshots), "snapshot_gb": int(snapshot_gb),
        "used_gb": round((object_bytes + used_bytes) / GIB, 3), "monthly_cost_usd": round(float(hourly) * HOURS, 2) or None,
    }  # fmt: skip


def _sums(ctx: Context, model: Any, *figures: Any) -> list[Any]:
    query = select(*figures).select_from(model)
    if model is Bucket:
        query = query.join(BucketUsage, BucketUsage.bucket_id == Bucket.id)
    elif model is Volume:
        query = query.outerjoin(VolumeUsage, VolumeUsage.volume_id == Volume.id).join(VolumeType, VolumeType.id == Volume.volume_type_id)
    mine = (model.project_id == ctx.project_id, model.deleted_at.is_(None), reach(ctx, f"{ctx.registry.of(model).key}.read").rows(model))
    return [value or 0 for value in ctx.db.execute(query.where(*mine)).one()]
