"""What the overview page says of compute: instances by state, and how much of the host is promised."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select

from portal.compute.capacity import host_limits, promised
from portal.compute.instances import Instance
from portal.kernel.authz import reach
from portal.kernel.capabilities import capability
from portal.kernel.context import Context


@dataclass(frozen=True, slots=True)
class Use:
    """One resource of the host: what is promised to instances, of what may be promised."""

    label: str
    unit: str
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class ComputeSummary:
    """Instances of the current project by state, and the host; `host` is empty where no engine has reported."""

    states: Mapping[str, int]
    host: tuple[Use, ...]
    accelerator: str


def compute_summary(ctx: Context) -> ComputeSummary:
    """The figures of the overview page."""
    visible = (reach(ctx, "compute.instance.read").rows(Instance), Instance.project_id == ctx.project_id, Instance.deleted_at.is_(None))
    rows = ctx.db.execute(select(Instance.state, func.count()).where(*visible).group_by(Instance.state))
    states = {state: number for state, number in rows}  # noqa: C416 - rows are no tuples for the type checker
    status = capability(ctx.db, "compute")
    if status is None or not status.available:
        return ComputeSummary(states, (), "")
    limits, given = host_limits(ctx.settings, status.facts), promised(ctx)
    total, free = int(status.facts["disk_total_gib"]), int(status.facts["disk_free_gib"])
    host = (
        Use("vCPU", "", given.vcpus, limits.vcpus),
        Use("Memory", "GiB", -(-given.memory_mib // 1024), limits.memory_mib // 1024),
        Use("Disk", "GiB", total - free, total),
    )
    return ComputeSummary(states, host, str(status.facts.get("accelerator", "")))
