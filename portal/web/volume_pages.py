"""What the pages of volumes and snapshots show besides what is derived: snapshots, schedule, measurements, the volumes of an instance."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from portal.kernel.authz import reach
from portal.kernel.context import Context
from portal.storage.schedules import schedule_of, volume_set_snapshot_schedule
from portal.storage.volume_metrics import MIB, VolumeSeries, used_of, volume_series
from portal.storage.volume_models import Snapshot, Volume
from portal.storage.volumes import volume_detach
from portal.web.compute_pages import PERIODS, Chart, chart_of, hours_asked
from portal.web.derived import Tab, why_not

LISTED = 200
GIB = 1 << 30


def _visible(ctx: Context, model: Any, *where: Any) -> Sequence[Any]:
    rtype = ctx.registry.of(model)
    query = select(model).where(*where, model.deleted_at.is_(None), reach(ctx, f"{rtype.key}.read").rows(model)).options(*rtype.eager())
    return ctx.db.scalars(query.order_by(model.created_at.desc(), model.id).limit(LISTED)).all()


def _overview(ctx: Context, volume: Volume) -> Mapping[str, Any]:
    used = used_of(ctx, volume.id)
    return {"used": used, "size": volume.size_gb * GIB, "schedule": schedule_of(volume)}


def _snapshots(ctx: Context, volume: Volume) -> Mapping[str, Any]:
    rtype = ctx.registry.of(Volume)
    return {
        "snapshots": _visible(ctx, Snapshot, Snapshot.volume_id == volume.id), "rows": ctx.registry.of(Snapshot), "schedule": schedule_of(volume),
        "no_schedule_because": why_not(ctx, rtype, volume_set_snapshot_schedule, volume),
    }  # fmt: skip


def _metrics(ctx: Context, volume: Volume) -> Mapping[str, Any]:
    hours = hours_asked()
    found = volume_series(ctx, volume.id, hours=hours)
    return {"hours": hours, "periods": PERIODS, "series": found, "charts": _charts(found) if found.points else []}


def _charts(found: VolumeSeries) -> list[Chart]:
    """The four charts of a volume."""
    points = found.points
    per_s = [1 / max(point.interval_s, 1e-3) for point in points]

    def rate(name: str, unit: float = 1) -> list[float]:
        return [getattr(point, name) * each / unit for point, each in zip(points, per_s, strict=True)]

    return [
        chart_of("IOPS", "/s", [("write", "", rate("write_ops")), ("read", "c2", rate("read_ops"))], points=points),
        chart_of("Throughput", "MiB/s", [("write", "", rate("write_bytes", MIB)), ("read", "c2", rate("read_bytes", MIB))], points=points),
        chart_of("Latency", "ms", [("an operation", "", [point.latency_ms or 0.0 for point in points])], points=points),
        chart_of("Room on the host", "GiB", [("used", "", [point.used_bytes / GIB for point in points])], points=points),
    ]


def _of_instance(ctx: Context, instance: Any) -> Mapping[str, Any]:
    rtype = ctx.registry.of(Volume)
    volumes = _visible(ctx, Volume, Volume.instance_id == instance.id)
    return {
        "volumes": volumes,
        "rows": rtype,
        "can_detach": {each.id for each in volumes if not each.is_root and not why_not(ctx, rtype, volume_detach, each)},
    }


TABS: dict[str, Sequence[Tab]] = {
    "storage.volume": (
        Tab("overview", "Overview", "overview.html", _overview),
        Tab("snapshots", "Snapshots", "snapshots.html", _snapshots),
        Tab("metrics", "Metrics", "metrics.html", _metrics),
    ),
}
OF_INSTANCE = Tab("storage", "Storage", "storage.html", _of_instance)
