"""One search over everything the caller may see, in all their projects."""

from dataclasses import dataclass

from portal.kernel.context import Context
from portal.kernel.lookup import ListQuery, found_rows
from portal.kernel.resource import ResourceType

PER_TYPE = 6
MAX_TEXT = 100


@dataclass(frozen=True, slots=True)
class Hit:
    """A resource that matches."""

    type_key: str
    service: str
    collection: str
    label: str
    icon: str
    id: str
    name: str
    state: str
    project_id: str | None


def search(ctx: Context, text: str, *, limit: int = 20) -> list[Hit]:
    """Resources whose name or id contains the text; those that begin with it come first."""
    text = text.strip()[:MAX_TEXT]
    if not text:
        return []
    hits = [hit for rtype in ctx.registry for hit in _of_type(ctx, rtype, text)]
    hits.sort(key=lambda hit: (not hit.name.lower().startswith(text.lower()), hit.name.lower(), hit.id))
    return hits[:limit]


def _of_type(ctx: Context, rtype: ResourceType, text: str) -> list[Hit]:
    rows = found_rows(ctx, rtype, ListQuery(search=text, all_projects=True), limit=PER_TYPE)
    return [
        Hit(rtype.key, rtype.service, rtype.collection, rtype.label, rtype.icon, row.id, row.name, getattr(row, "state", ""), row.project_of())
        for row in rows
    ]
