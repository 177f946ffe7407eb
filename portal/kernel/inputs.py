"""Input of operations: one pydantic model per operation checks it and is its JSON Schema; references arrive as loaded, locked rows."""

import itertools
import math
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError, create_model
from pydantic import Field as PydanticField

from portal.kernel.context import Context
from portal.kernel.declare import Operation, Param
from portal.kernel.errors import InvalidRequest
from portal.kernel.fields import SAYS, Ref, RefList
from portal.kernel.lookup import find_reference, seen_by_name
from portal.kernel.resource import Registry, Resource, ResourceType

# So many combinations of entries of lists are decided on one by one.
MAX_VARIANTS = 256
_INPUT_MODELS: dict[Callable[..., Any], type[BaseModel]] = {}


def input_model_of(op: Operation) -> type[BaseModel]:
    """The pydantic model of an operation's input: the source of validation and of JSON Schema alike."""
    made = _INPUT_MODELS.get(op.func)
    if made is None:
        members: dict[str, Any] = {}
        for name, param in op.params.items():
            annotation = param.info.kind.annotation()
            if param.nullable:
                annotation = annotation | None
            default = ... if param.required else param.default
            alias = AliasChoices(name, *param.info.aliases) if param.info.aliases else None
            title = param.info.label or name.replace("_", " ")
            members[name] = (annotation, PydanticField(default, title=title, description=param.info.help or None, validation_alias=alias))
        title = f"{op.model.__name__}{op.verb.title().replace('_', '').replace('-', '')}"
        made = create_model(title, __config__=ConfigDict(extra="forbid", populate_by_name=True), **members)
        _INPUT_MODELS[op.func] = made
    return made


def validate(op: Operation, data: Mapping[str, Any], *, strict: bool = True) -> dict[str, Any]:
    """Check input; `strict` refuses "2" for 2 (JSON), otherwise text is parsed (forms). Raises InvalidRequest with every problem at once."""
    try:
        parsed = input_model_of(op).model_validate(dict(data), strict=strict)
    except ValidationError as error:
        raise InvalidRequest.fields(problems(error)) from None
    names = parsed.model_fields_set if op.partial else set(op.params)
    return {name: getattr(parsed, name) for name in op.params if name in names}


def problems(error: ValidationError) -> dict[str, list[str]]:
    """Field → sentences, from pydantic's list."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_context=True):
        name = str(item["loc"][0])[:100] if item["loc"] else "body"
        where = ".".join(str(part)[:100] for part in item["loc"][1:])
        found.setdefault(name, []).append(f"{where}: {_words(item)}" if where else _words(item))
    return {name: texts[:10] for name, texts in found.items()}


def _words(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "is not a field of this request"
    if item["type"] == "string_pattern_mismatch":
        return SAYS.get(item["ctx"]["pattern"], "has a form that is not accepted here")
    return str(item["msg"].removeprefix("Value error, "))


def canonical(op: Operation, data: Mapping[str, Any]) -> dict[str, Any]:
    """Input under the names of the parameters: what is kept with the job and in the audit log must not depend on the alias that was used."""
    found = dict(data)
    for name, param in op.params.items():
        given = [alias for alias in param.info.aliases if alias in found]
        # Two names for one thing stay as they are: validation refuses the second.
        if name not in found and len(given) == 1:
            found[name] = found.pop(given[0])
    return found


def inputs_of(ctx: Context, op: Operation, data: Mapping[str, Any], *, strict: bool = True, project_id: str | None = None) -> dict[str, Any]:
    """Checked input. References are loaded and locked before the target, sorted, so that everybody locks in the same order.

    They are of the project of what is changed (`project_id`), or of the current one.
    """
    inputs = validate(op, data, strict=strict)
    references = sorted((p for p in op.params.values() if p.ref_model is not None), key=lambda p: str(p.ref_model))
    inputs.update({p.name: find_reference(ctx, p, inputs[p.name], project_id=project_id) for p in references if inputs.get(p.name) is not None})
    return inputs


def as_understood(
    ctx: Context, op: Operation, inputs: Mapping[str, Any], given: Container[str] = (), *, project_id: str | None = None
) -> dict[str, Any]:
    """Checked input as conditions of policies see it: what a field names is its id, whatever it was called in the request.

    Of what was not given, a default that says nothing (no text, no entries, no) is not there.
    """
    plain = {name: _ids(ctx, op.params[name], value, project_id) for name, value in inputs.items()}
    return {name: value for name, value in plain.items() if name in given or says_something(value)}


def _ids(ctx: Context, param: Param, value: Any, project_id: str | None) -> Any:
    if isinstance(value, Resource):
        return value.id
    kind = param.info.kind
    if not isinstance(kind, Ref | RefList) or (rtype := ctx.registry.get(kind.type_key)) is None:
        return value
    if isinstance(value, list):
        return [_id(ctx, rtype, each, project_id) for each in value]
    return _id(ctx, rtype, value, project_id)


def _id(ctx: Context, rtype: ResourceType, value: Any, project_id: str | None) -> Any:
    row = seen_by_name(ctx, rtype, value, project_id=project_id) if isinstance(value, str) and value else None
    return row.id if row is not None else value


def variants(inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The input as several that hold one entry of each list: what is allowed has to be allowed, and not denied, with any of them.

    Raises InvalidRequest where there would be too many.
    """
    lists = {
        name: value for name, value in inputs.items() if isinstance(value, list) and value and all(isinstance(each, str | int) for each in value)
    }
    if math.prod(map(len, lists.values())) > MAX_VARIANTS:
        raise InvalidRequest(f"The lists of this request ({', '.join(sorted(lists))}) are too long together: split it into several requests.")
    for chosen in itertools.product(*lists.values()):
        yield {**inputs, **dict(zip(lists, chosen, strict=True))}


def fields_of(op: Operation) -> Mapping[str, str]:
    """Every name under which a request of an operation may give a field, and the one that conditions know it by."""
    return {alias: name for name, param in op.params.items() for alias in (name, *param.info.aliases)}


def fields_by_action(registry: Registry) -> dict[str, Mapping[str, str]]:
    """Action → what its requests may hold, of every operation and of what is declared besides; other actions show conditions no fields."""
    return dict(registry.fields) | {action: fields_of(op) for action, op in registry.operations().items()}


def says_something(value: Any) -> bool:
    """Whether a value is more than the absence of one."""
    return bool(value) or (isinstance(value, int | float) and not isinstance(value, bool))
