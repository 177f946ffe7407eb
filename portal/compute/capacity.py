"""Whether the host still has room: checked when an instance is created or started, against what is promised to those that run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from portal.compute.flavors import Flavor
from portal.kernel.capabilities import CapabilityStatus
from portal.kernel.context import Context
from portal.kernel.errors import Conflict, Unavailable
from portal.settings import Settings

PROMISED = ("pending", "running", "starting", "rebooting", "rebuilding", "stopping")


@dataclass(frozen=True, slots=True)
class Room:
    """vCPU, memory and disk of the host: what may be promised, or what is."""

    vcpus: int
    memory_mib: int
    disk_gib: int = 0


def host_limits(settings: Settings, facts: Mapping[str, Any]) -> Room:
    """What may be promised to instances on a host of these facts; disks are thin, so only what is free now counts."""
    return Room(
        vcpus=int(facts["cpus"] * settings.cpu_overcommit), memory_mib=int(facts["memory_mib"]) - settings.memory_reserved_mib,
        disk_gib=int(facts["disk_free_gib"]) - settings.disk_reserved_gib,
    )  # fmt: skip


def promised(ctx: Context) -> Room:
    """What is promised to the instances of all projects."""
    instance = ctx.registry.model("compute.instance")
    sums = (func.coalesce(func.sum(Flavor.vcpus), 0), func.coalesce(func.sum(Flavor.memory_mb), 0))
    query = select(*sums).select_from(instance).join(Flavor, Flavor.id == instance.flavor_id)
    vcpus, memory_mib = ctx.db.execute(query.where(instance.state.in_(PROMISED), instance.deleted_at.is_(None))).one()
    return Room(int(vcpus), int(memory_mib))


def refuse_if_full(ctx: Context, flavor: Flavor, *, count: int, disk_gb: int) -> None:
    """Raise Conflict naming what is short, or Unavailable where no engine runs instances at all. `disk_gb` is per instance, thinly provisioned."""
    # Locked: two that come at once must not both be promised the last of the host.
    status = ctx.db.get(CapabilityStatus, "compute", with_for_update=True, populate_existing=True)
    if status is None:
        raise Unavailable("No worker has reported a compute engine yet. It starts with the portal; try again in a few seconds.")
    if not status.available:
        raise Unavailable(
            f"Instances cannot run here: {status.reason} {status.remedy}".strip(), details={"reason": status.reason, "remedy": status.remedy}
        )
    room, given = host_limits(ctx.settings, status.facts), promised(ctx)
    if disk_gb and room.disk_gib < 1:
        free, kept = int(status.facts["disk_free_gib"]), ctx.settings.disk_reserved_gib
        raise Conflict(
            f"The host has no room: the disk under DATA_DIR has {free:,} GiB free, and {kept:,} GiB of it are kept free (DISK_RESERVED_GIB). "
            "Terminate an instance or delete an image; an administrator can free space there or keep less free.",
            details={"what": "disk", "setting": "DISK_RESERVED_GIB", "limit": room.disk_gib, "used": 0, "requested": 1},
        )
    for what, unit, limit, used, wanted in (
        ("vCPU", "", room.vcpus, given.vcpus, flavor.vcpus * count),
        ("memory", " MiB", room.memory_mib, given.memory_mib, flavor.memory_mb * count),
    ):
        if used + wanted > limit:
            raise Conflict(
                f"The host has no room: {flavor.name} needs {wanted:,}{unit} {what}, "
                f"{max(limit - used, 0):,}{unit} of {max(limit, 0):,}{unit} are left. Stop or terminate an instance, or take a smaller flavor.",
                details={"what": what, "limit": limit, "used": used, "requested": wanted},
            )
