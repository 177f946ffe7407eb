"""Whether the host still has room: checked when an instance is created or started, against what is promised to those that run."""

from sqlalchemy import func, select

from portal.compute.flavors import Flavor
from portal.kernel.capabilities import capability
from portal.kernel.context import Context
from portal.kernel.errors import Conflict, Unavailable

PROMISED = ("pending", "running", "starting", "rebooting", "rebuilding", "stopping")


def refuse_if_full(ctx: Context, flavor: Flavor, *, count: int, disk_gb: int) -> None:
    """Raise Conflict naming what is short, or Unavailable where no engine runs instances at all. `disk_gb` is per instance, thinly provisioned."""
    instance = ctx.registry.model("compute.instance")
    status = capability(ctx.db, "compute")
    if status is None:
        raise Unavailable("No worker has reported a compute engine yet. It starts with the portal; try again in a few seconds.")
    if not status.available:
        raise Unavailable(f"Instances cannot run here: {status.reason} {status.remedy}".strip(), details={"reason": status.reason, "remedy": status.remedy})
    promised = ctx.db.execute(
        select(func.coalesce(func.sum(Flavor.vcpus), 0), func.coalesce(func.sum(Flavor.memory_mb), 0))
        .select_from(instance)
        .join(Flavor, Flavor.id == instance.flavor_id)
        .where(instance.state.in_(PROMISED), instance.deleted_at.is_(None))
    ).one()
    facts = status.facts
    limits = (
        ("vCPU", "", int(facts["cpus"] * ctx.settings.cpu_overcommit), int(promised[0]), flavor.vcpus * count),
        ("memory", " MiB", facts["memory_mib"] - ctx.settings.memory_reserved_mib, int(promised[1]), flavor.memory_mb * count),
        ("disk", " GiB", facts["disk_free_gib"] - ctx.settings.disk_reserved_gib, 0, 1 if disk_gb else 0),
    )
    for what, unit, limit, used, wanted in limits:
        if used + wanted > limit:
            raise Conflict(
                f"The host has no room: {flavor.name} needs {wanted:,}{unit} {what}, {max(limit - used, 0):,}{unit} of {max(limit, 0):,}{unit} are left. "
                "Stop or terminate an instance, or take a smaller flavor.",
                details={"what": what, "limit": limit, "used": used, "requested": wanted},
            )
