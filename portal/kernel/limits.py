"""The quotas of a project as people see them, and how an administrator changes one."""

from dataclasses import dataclass

from sqlalchemy import column, select, table

from portal.kernel import audit, quota
from portal.kernel.authz import Target, decide
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, NotFound
from portal.kernel.ids import is_storable
from portal.kernel.operations import acting

HIGHEST = 2**53
# The kernel does not know the model; it only asks whether there is one.
PROJECTS = table("projects", column("id"))


@dataclass(frozen=True, slots=True)
class QuotaLine:
    """One dimension of a project's quota, in the unit of the dimension."""

    dimension: str
    label: str
    unit: str
    limit: int | None
    used: int

    @property
    def left(self) -> int | None:
        """What may still be taken; None where there is no limit."""
        return None if self.limit is None else max(0, self.limit - self.used)


def quota_lines(ctx: Context, project_id: str) -> list[QuotaLine]:
    """The limited dimensions of a project, in their usual order. Raises NotFound."""
    _require(ctx, project_id)
    found = quota.usage(ctx.db, project_id)
    return [QuotaLine(d.name, d.label, d.unit, *found[d.name]) for d in quota.DIMENSIONS.values()]


def _require(ctx: Context, project_id: str) -> None:
    is_there = is_storable(project_id) and ctx.db.scalar(select(PROJECTS.c.id).where(PROJECTS.c.id == project_id)) is not None
    if not is_there or not decide(ctx, "core.quota.read", Target(project_id)).allowed:
        raise NotFound(f"There is no project {project_id[:80]} here.")


def quota_update(ctx: Context, project_id: str, dimension: str, limit: int) -> QuotaLine:
    """Set a limit; one below what is in use stops what is new and takes nothing away. Raises NotFound, Forbidden or InvalidRequest."""
    known = quota.DIMENSIONS.get(dimension)
    if known is None:
        raise NotFound(f"There is no quota {dimension[:80]}; there are {', '.join(quota.DIMENSIONS)}.")
    _require(ctx, project_id)
    about = audit.Subject("core.quota", project_id, dimension, project_id)
    before = quota.usage(ctx.db, project_id)[dimension][0]
    details = {"before": {"limit": before}, "after": {"limit": limit}}
    with acting(ctx, "core.quota.update", about, target=Target(project_id, label=f"quota {dimension}"), details=details):
        if not 0 <= limit <= HIGHEST:
            raise InvalidRequest.fields({"limit": [f"must be 0 to {HIGHEST:,}."]})
        quota.ensure(ctx.db, project_id, dimension)
        query = select(quota.Quota).where(quota.Quota.project_id == project_id, quota.Quota.dimension == dimension)
        row = ctx.db.scalars(query.with_for_update().execution_options(populate_existing=True)).one()
        row.limit = limit
    return QuotaLine(known.name, known.label, known.unit, limit, row.used)
