"""Sharing a resource with projects that are named; with everybody is each type's own business."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from portal.kernel import fields as f
from portal.kernel.authz import decide, target_of
from portal.kernel.context import Context
from portal.kernel.declare import Operation, operation
from portal.kernel.errors import InvalidRequest
from portal.kernel.policy import Target
from portal.kernel.projects import is_there
from portal.kernel.resource import ShareableByName

MOST_PROJECTS = 50
LIST_OF_IDS: Mapping[str, Any] = {"type": "array", "items": {"type": "string"}}
Accounts = Annotated[
    list[str], f.FieldInfo(f.Names(MOST_PROJECTS), "Projects", "Their ids, one per line, in place of those there are; none ends it.", aliases=("account_ids",))
]  # fmt: skip


def share_operation(model: type[ShareableByName], *, when: Sequence[str], refuse: Callable[[Any], None]) -> Operation:
    """The operation that shares a row with projects; `refuse` raises for a row that must not be shared."""

    def share(ctx: Context, row: Any, *, projects: Accounts) -> None:
        """Let the people of some projects see it and use it, or end that; what they made from it stays."""
        wanted = list(dict.fromkeys(each for each in projects if each != row.project_id))
        # By their ids alone: names of projects are not everybody's to find out.
        if unknown := [each for each in wanted if not is_there(ctx.db, each)]:
            raise InvalidRequest.fields({"projects": [f"There is no project {each[:80]}." for each in unknown]})
        if wanted:
            refuse(row)
        row.shared_with = f" {' '.join(wanted)} " if wanted else ""

    return operation(
        model, "share", label="Share with projects", needs="manage", icon="user", when=when, present=lambda row: {"projects": shared_accounts(row)}
    )(share)


def shared_accounts(row: ShareableByName) -> list[str]:
    """The projects that a row is shared with, in the order in which they were named."""
    return (row.shared_with or "").split()


def visibility(row: ShareableByName) -> str:
    """Whom a row is shared with, in words."""
    number = len(shared_accounts(row))
    return "Everybody" if row.is_public else f"{number} other project{'s' if number > 1 else ''}" if number else "This project"


def veil_shares(ctx: Context, rows: Sequence[Any]) -> Mapping[str, Mapping[str, Any]]:
    """With whom else a row is shared is told to nobody with whom it is shared."""
    return {
        row.id: {"shared_with_accounts": [], "visibility": "Everybody" if row.is_public else "Shared with you"}
        for row in rows
        if row.shared_with and not decide(ctx, f"{ctx.registry.of(type(row)).key}.read", _as_own(row)).allowed
    }


def _as_own(row: Any) -> Target:
    """A row as if it was shared with nobody."""
    target = target_of(row)
    return Target(target.project_id, target.owner_id, False, target.label, target.id, target.name, target.tags)
