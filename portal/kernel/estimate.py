"""What an operation would do to the quota, without doing it: for forms that show the effect before the click."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portal.kernel import authz, quota
from portal.kernel.context import Context
from portal.kernel.declare import Created, Operation
from portal.kernel.errors import PortalError, QuotaExceeded
from portal.kernel.inputs import canonical, inputs_of
from portal.kernel.limits import own_limits
from portal.kernel.quota import DIMENSIONS
from portal.kernel.resource import Tenancy
from portal.kernel.wording import within


@dataclass(frozen=True, slots=True)
class Impact:
    """One quota dimension: its limit, what is used now, and what the operation would add."""

    dimension: str
    label: str
    unit: str
    limit: int | None
    used: int
    added: int

    @property
    def is_exceeded(self) -> bool:
        """Whether it would be refused."""
        return self.limit is not None and self.added > 0 and self.used + self.added > self.limit


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a creation would take, and why it would be refused; `problem` is None if nothing stands in its way now."""

    impacts: tuple[Impact, ...]
    problem: PortalError | None
    hourly_cost_usd: float | None = None


def estimate_create(ctx: Context, op: Operation, data: Mapping[str, Any], *, strict: bool = True) -> Estimate:
    """Try a creation in a transaction that is thrown away. Raises Forbidden as the creation would."""
    rtype = ctx.registry.of(op.model)
    project_id = None if rtype.tenancy is Tenancy.PLATFORM else ctx.project_id
    authz.authorize(ctx, f"{rtype.key}.{op.verb}", authz.Target(project_id, ctx.principal.user_id, label=f"a new {within(rtype.label)}"))
    try:
        made = op.func(ctx, **inputs_of(ctx, op, canonical(op, data), strict=strict))
        rows = made.rows if isinstance(made, Created) else [made]
        added: dict[str, int] = {}
        for row in rows:
            for dimension, amount in rtype.amounts(row).items():
                added[dimension] = added.get(dimension, 0) + amount
        impacts = _impacts(ctx, project_id, added)
        costs = [cost for row in rows if (cost := rtype.hourly_cost_usd(row)) is not None]
        return Estimate(impacts, _exceeded(impacts) or _exceeded(_own_impacts(ctx, added), of_user=True), sum(costs) if costs else None)
    except PortalError as error:
        return Estimate((), error)
    finally:
        ctx.db.rollback()


def _exceeded(impacts: Sequence[Impact], *, of_user: bool = False) -> QuotaExceeded | None:
    found = next((impact for impact in impacts if impact.is_exceeded), None)
    if found is None:
        return None
    return QuotaExceeded(found.dimension, limit=found.limit or 0, used=found.used, requested=found.added, of_user=of_user)


def _own_impacts(ctx: Context, added: Mapping[str, int]) -> list[Impact]:
    return [Impact(line.dimension, line.label, line.unit, line.limit, line.used, added.get(line.dimension, 0)) for line in own_limits(ctx)]


def _impacts(ctx: Context, project_id: str | None, added: Mapping[str, int]) -> tuple[Impact, ...]:
    if project_id is None:
        return ()
    usage = quota.usage(ctx.db, project_id)
    return tuple(
        Impact(name, DIMENSIONS[name].label, DIMENSIONS[name].unit, *usage[name], amount) for name, amount in added.items() if name in DIMENSIONS
    )
