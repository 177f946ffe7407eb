"""What goes with something that is deleted: listed beforehand, and what of it is in the way.

Whoever deletes a thing with all that is in it deletes each part: what they may not delete, what is locked and what is protected is named instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Select, func, select

from portal.kernel.authz import authorize, reach, target_of
from portal.kernel.declare import Effect, Operation
from portal.kernel.resource import ResourceType
from portal.kernel.wording import within

if TYPE_CHECKING:
    from portal.kernel.context import Context

SHOWN = 200
NAMED = 5


@dataclass(frozen=True, slots=True)
class Listed:
    """What goes, or changes hands, of one kind: how many, and the names of the first that may be seen."""

    label: str
    count: int
    names: Sequence[str]

    @property
    def sentence(self) -> str:
        """How many of what, and the first names: `7 subnets (a, b, c, d, e and 2 more)`."""
        shown = self.names[:NAMED]
        more = f" and {self.count - len(shown)} more" if shown and self.count > len(shown) else ""
        return f"{self.count} {within(self.label)}" + (f" ({', '.join(shown)}{more})" if shown else "")


@dataclass(frozen=True, slots=True)
class Leaving:
    """Everything that goes with a row, and what is in the way of its deletion."""

    resources: Sequence[Listed]
    in_the_way: Sequence[str]


def leaving_of(ctx: "Context", rtype: ResourceType, row: Any) -> Leaving:
    """What the deletion of a row with all that is in it would do. Raises Forbidden for who may not delete it."""
    authorize(ctx, ctx.registry.name_of(removal(rtype)), target_of(row))
    return rtype.leaving(ctx, row) if rtype.leaving is not None else Leaving((), ())


def listed(ctx: "Context", label: str, names: Select[str], *, plural: str = "") -> Listed | None:
    """What a query names, in alphabetical order; None where it names nothing."""
    count = ctx.db.scalar(select(func.count()).select_from(names.subquery())) or 0
    if not count:
        return None
    first = ctx.db.scalars(names.order_by(names.selected_columns[0]).limit(SHOWN)).all()
    return Listed(plural if plural and count > 1 else label, count, first)


def rows_listed(ctx: "Context", rtype: ResourceType, *where: ColumnElement[bool]) -> Listed | None:
    """Live rows of a type: all are counted, and those named that the caller may see."""
    live = (*where, rtype.model.deleted_at.is_(None))
    count = _count(ctx, rtype, *live)
    if not count:
        return None
    return Listed(rtype.plural if count > 1 else rtype.label, count, _names(ctx, rtype, *live, limit=SHOWN))


def refusals(ctx: "Context", rtype: ResourceType, *where: ColumnElement[bool]) -> list[str]:
    """Why live rows of a type cannot go along with what is deleted: locked, protected, or not the caller's to delete."""
    model, live = rtype.model, (*where, rtype.model.deleted_at.is_(None))
    found = []
    if locked := in_words(ctx, rtype, *live, model.locked.is_(True)):
        found.append(f"{locked} locked against changes: unlock first.")
    op = removal(rtype)
    if op.unless and (protected := in_words(ctx, rtype, *live, getattr(model, op.unless).is_(True))):
        label = rtype.fields()[op.unless].label.lower()
        found.append(f"{protected} protected: switch {label} off first.")
    if kept := in_words(ctx, rtype, *live, ~reach(ctx, ctx.registry.name_of(op)).rows(model)):
        found.append(f"{kept} not yours to delete ({ctx.registry.name_of(op)}).")
    return [*found, *rtype.in_the_way(ctx, rtype, live)]


def in_words(ctx: "Context", rtype: ResourceType, *where: ColumnElement[bool]) -> str:
    """The rows in words, such as `Instances web-1, web-2 are`; empty where there is none."""
    count = _count(ctx, rtype, *where)
    if not count:
        return ""
    names, be = _names(ctx, rtype, *where, limit=NAMED), "is" if count == 1 else "are"
    if not names:
        return f"{count} {within(rtype.label if count == 1 else rtype.plural)} that you may not see {be}"
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f"{rtype.label if count == 1 else rtype.plural} {', '.join(names)}{more} {be}"


def removal(rtype: ResourceType) -> Operation:
    """The operation that removes a row of the type."""
    return next(op for op in rtype.operations if op.effect is Effect.REMOVE and not op.internal)


def _names(ctx: "Context", rtype: ResourceType, *where: ColumnElement[bool], limit: int) -> Sequence[str]:
    visible = reach(ctx, f"{rtype.key}.read").rows(rtype.model)
    return ctx.db.scalars(select(rtype.model.name).where(*where, visible).order_by(rtype.model.name).limit(limit)).all()


def _count(ctx: "Context", rtype: ResourceType, *where: ColumnElement[bool]) -> int:
    return ctx.db.scalar(select(func.count()).select_from(rtype.model).where(*where)) or 0
