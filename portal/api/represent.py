"""Rows as JSON, and the schema of that JSON, from the same declaration."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from portal.api.body import moment
from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.resource import ResourceType

Getter = Callable[[Any], Any]
RENAMED = {"extra": "metadata"}
ANY_OF_OUR_VALUES: Mapping[str, Any] = {"type": ["string", "number", "boolean", "null", "array"]}


_made: dict[type[Any], tuple[ResourceType, tuple[tuple[str, Getter], ...]]] = {}


def _getters(rtype: ResourceType) -> tuple[tuple[str, Getter], ...]:
    """Made once per type: a list of a hundred rows must not look at declarations a hundred times."""
    made = _made.get(rtype.model)
    if made is None or made[0] is not rtype:
        made = _made[rtype.model] = (rtype, _make_getters(rtype))
    return made[1]


def _make_getters(rtype: ResourceType) -> tuple[tuple[str, Getter], ...]:
    found: dict[str, Getter] = {rtype.id_name: _attribute("id"), "id": _attribute("id"), "resource_id": _attribute("resource_id")}
    for name, info in rtype.fields().items():
        if info.exposed:
            found[RENAMED.get(name, name)] = _attribute(name)
    found.update({alias: found[name] for alias, name in rtype.aliases.items() if name in found})
    found["version"] = _attribute("version")
    found.update(rtype.show)
    return tuple(found.items())


def _attribute(name: str) -> Getter:
    def get(row: Any) -> Any:
        value = getattr(row, name)
        return moment(value) if isinstance(value, datetime) else value

    return get


def represent(ctx: Context, rtype: ResourceType, row: Any) -> dict[str, Any]:
    """A row as the API gives it."""
    return represent_all(ctx, rtype, [row])[0]


def represent_all(ctx: Context, rtype: ResourceType, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows as the API gives them to somebody."""
    veils, getters = rtype.veil(ctx, rows), _getters(rtype)
    found = [{name: get(row) for name, get in getters} for row in rows]
    for row, shown in zip(rows, found, strict=True):
        veil = veils.get(row.id, {})
        shown.update(veil)
        shown.update({alias: veil[name] for alias, name in rtype.aliases.items() if name in veil})
    return found


def schema_of(rtype: ResourceType) -> dict[str, Any]:
    """JSON Schema of `represent`."""
    text = {"type": "string"}
    properties: dict[str, Any] = {rtype.id_name: text, "id": text, "resource_id": text}
    for name, info in rtype.fields().items():
        if info.exposed:
            properties[RENAMED.get(name, name)] = _field_schema(rtype, name, info)
    properties.update({alias: properties[name] for alias, name in rtype.aliases.items() if name in properties})
    properties["version"] = {"type": "integer"}
    properties.update({name: rtype.shapes.get(name, ANY_OF_OUR_VALUES) for name in rtype.show})
    return {"type": "object", "title": rtype.label, "description": rtype.summary, "properties": properties, "required": sorted(properties)}


def _field_schema(rtype: ResourceType, name: str, info: f.FieldInfo) -> dict[str, Any]:
    is_nullable = rtype.model.__table__.c[_column(rtype, name)].nullable
    if isinstance(info.kind, f.State):
        found: dict[str, Any] = {"type": "string", "enum": list(rtype.states())}
    elif isinstance(info.kind, f.Moment):
        found = {"type": "string", "format": "date-time"}
    else:
        found = {"type": TypeAdapter(info.kind.annotation()).json_schema().get("type", "string")}
    if is_nullable:
        found["type"] = [found["type"], "null"]
    if text := " ".join(part for part in (info.help or info.label, f"In {info.unit}." if info.unit else "") if part):
        found["description"] = text
    return found


def _column(rtype: ResourceType, name: str) -> str:
    column: str = getattr(rtype.model, name).property.columns[0].name
    return column
