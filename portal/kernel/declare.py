"""Declaring operations: what a function that changes a row needs, takes and leads to. Running them is in `operations`."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from sqlalchemy import inspect as sa_inspect

from portal.kernel import authz
from portal.kernel.context import Context
from portal.kernel.fields import Bool, FieldInfo, Ref
from portal.kernel.resource import Resource, ResourceType
from portal.settings import Settings

if TYPE_CHECKING:
    from portal.kernel.runner import StepRun


class Effect(StrEnum):
    """What an operation does to the row it is aimed at."""

    CREATE = "create"
    CHANGE = "change"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Step:
    """One repeatable piece of a job; a step without undo says why none is needed."""

    do: "Callable[[StepRun], None]"
    label: str
    undo: "Callable[[StepRun], None] | None" = None
    because: str = ""

    def __post_init__(self) -> None:
        """Refuse a step that forgot about undoing."""
        if self.undo is None and not self.because:
            msg = f"step {self.name} has neither an undo nor a reason for none"
            raise TypeError(msg)

    @property
    def name(self) -> str:
        """Name of the function that does it."""
        return self.do.__name__


@dataclass(frozen=True, slots=True)
class AskedWork:
    """A kind of job that somebody asks for and that is no operation on a resource; `cancelled` tells what stays of one that is stopped on the way.

    It is empty where none can be stopped.
    """

    kind: str
    cancelled: str


@dataclass(frozen=True, slots=True)
class Param:
    """One input of an operation."""

    name: str
    info: FieldInfo
    required: bool
    default: Any
    nullable: bool
    ref_model: type[Resource] | None = None


@dataclass(frozen=True, slots=True)
class OneOf:
    """Inputs of which at most one is given: a form asks once. Each has words for what it is; `none` says what it means to give none of them."""

    label: str
    none: str
    params: Mapping[str, str]
    help: str = ""


@dataclass(frozen=True, slots=True)
class Created:
    """What a creating operation made, with what is shown once and never again (a private key); `queue` says if its steps are to run now."""

    rows: Sequence[Any]
    once: Mapping[str, str] = field(default_factory=dict)
    queue: bool = True
    # Of the platform itself, where rows of the type may belong to no project.
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `run` did; `jobs` finish it where that takes time."""

    rows: Sequence[Any]
    jobs: Sequence[str] = ()
    once: Mapping[str, str] = field(default_factory=dict)
    replayed: bool = False
    # The id of what a change made within the row, such as a rule in a group: what its function gave back.
    part: str = ""

    @property
    def row(self) -> Any:
        """The first row: the only one unless a count was given."""
        return self.rows[0]

    @property
    def job_id(self) -> str | None:
        """The first job."""
        return self.jobs[0] if self.jobs else None


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that can be done to a resource type; made by the `operation` decorator.

    `when` are the states it is allowed in, `holds` the transient state while its job runs, `settles` and `fails` the states after it,
    `cancelled` the one after a cancelled job. `finish` sets columns in the transaction in which the job succeeds, `restore` in the one in which
    it fails. `rests` gives the state after the job, however it ended, where that depends on the row. `ahead` locks what is locked before the row:
    by whoever asks, given the input, and in the transaction in which the job succeeded.
    `along` writes what goes with the row, in the same transaction, given the input; `follow` acts in the transaction in which the job
    succeeded, once it has ended. `unless` names a yes-or-no field that forbids the operation while it is set. An `internal` operation is the
    portal's own: no page and no endpoint offers it. The jobs of an `urgent` one are brief, and go before all others. `by_job` says whether an
    installation needs the steps at all; where it does not, the operation is done at once. `present` gives the input that would leave a row as it is:
    its form begins with that. Inputs that are `one_of` several are one field of a form; `among` says which rows it offers for an input, by filters of their
    lists.
    """

    model: type[Any]
    verb: str
    func: Callable[..., Any]
    label: str
    needs: str
    effect: Effect
    params: Mapping[str, Param]
    steps: tuple[Step, ...] = ()
    when: frozenset[str] | None = None
    holds: str = ""
    settles: str = ""
    fails: str = ""
    cancelled: str = ""
    finish: Callable[[Any], None] | None = None
    restore: Callable[[Any], None] | None = None
    ahead: Callable[[Context, Any, Mapping[str, Any]], None] | None = None
    rests: Callable[[Any], str] | None = None
    along: Callable[[Context, Any, Mapping[str, Any]], None] | None = None
    follow: Callable[[Context, Any], None] | None = None
    icon: str = ""
    danger: bool = False
    bulk: bool = False
    partial: bool = False
    while_locked: bool = False
    unless: str = ""
    in_menu: bool = True
    internal: bool = False
    urgent: bool = False
    by_job: Callable[[Settings], bool] | None = None
    present: Callable[[Any], Mapping[str, Any]] | None = None
    one_of: OneOf | None = None
    among: Callable[[Any], Mapping[str, Mapping[str, Sequence[str]]]] | None = None
    # Inputs that no form has.
    besides: frozenset[str] = frozenset()

    def needs_job(self, settings: Settings) -> bool:
        """Whether steps follow the change of the row."""
        return bool(self.steps) and (self.by_job is None or self.by_job(settings))

    def state_at_first(self, settings: Settings) -> str:
        """The state that the row gets with the change; empty where it keeps its own."""
        return self.holds if self.by_job is None or self.by_job(settings) else self.settles

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.func) or self.label).splitlines()[0]

    def settled(self, row: Any) -> str:
        """The state of a row for which the job succeeded; empty where it has none."""
        return self.rests(row) if self.rests is not None else self.settles

    def failed(self, row: Any) -> str:
        """The state of a row for which the job failed and was undone."""
        return self.rests(row) if self.rests is not None else self.fails

    def check(self, rtype: ResourceType) -> None:
        """Refuse, at start-up, a declaration that does not fit the type's life cycle."""
        known = set(rtype.states())
        named = {s for s in (self.holds, self.settles, self.fails, self.cancelled) if s} | set(self.when or ())
        if named - known or (self.steps and self.effect is not Effect.REMOVE and not self.settles):
            msg = f"{rtype.key}.{self.verb}: unknown states {sorted(named - known)} or no final state"
            raise TypeError(msg)
        if self.unless and not isinstance(rtype.fields()[self.unless].kind, Bool):
            msg = f"{rtype.key}.{self.verb}: {self.unless} is no yes-or-no field"
            raise TypeError(msg)
        if self.needs not in authz.LEVELS:
            msg = f"{rtype.key}.{self.verb}: unknown level {self.needs}"
            raise TypeError(msg)


def operation(
    model: type[Any], verb: str, *, label: str, needs: str, effect: Effect = Effect.CHANGE, **options: Any
) -> Callable[[Callable[..., Any]], Operation]:
    """Declare an operation; its inputs are the keyword-only parameters of the function.

    A parameter annotated with a resource model is a reference and arrives as the loaded row; one that is named like a field of the model is
    checked like that field; any other needs `Annotated[type, FieldInfo(...)]`.
    """

    def declare(func: Callable[..., Any]) -> Operation:
        if "when" in options:
            options["when"] = frozenset(options["when"])
        return Operation(model=model, verb=verb, func=func, label=label, needs=needs, effect=effect, params=_params(model, func), **options)

    return declare


def update_operation(
    model: type[Any], *, label: str = "Edit", icon: str = "edit", needs: str = "write", also: Sequence[str] = (), besides: Sequence[str] = (),
    before: Callable[[Context, Any, dict[str, Any]], None] | None = None, along: Callable[[Context, Any, Mapping[str, Any]], None] | None = None,
    clearable: Sequence[str] = (),
) -> Operation:  # fmt: skip
    """The operation that changes the editable fields of a row, each on its own, those that are `clearable` to nothing as well.

    `before` may refuse the changes, `along` writes what goes with them. The fields of `besides` have a place of their own in the console, and are in
    no form.
    """
    infos = {attr: info for attr, info in _field_infos(model).items() if info.editable or attr in {*also, *besides}}
    params = {name: Param(name, info, required=False, default=None, nullable=name in clearable) for name, info in infos.items()}

    def update(ctx: Context, row: Any, **changes: Any) -> None:
        """Change name, description, tags and other editable fields."""
        if before is not None:
            before(ctx, row, changes)
        for name, value in changes.items():
            setattr(row, name, value)

    return Operation(model=model, verb="update", func=update, label=label, needs=needs, effect=Effect.CHANGE, params=params, partial=True, icon=icon,
                     along=along, besides=frozenset(besides))  # fmt: skip


def lock_operations(model: type[Any], meaning: str = "Refuse every change until it is unlocked.") -> tuple[Operation, Operation]:
    """Lock a row against every change, and unlock it; `meaning` says what is a change of it."""

    def lock(ctx: Context, row: Any) -> None:
        del ctx
        row.locked = True

    lock.__doc__ = meaning

    def unlock(ctx: Context, row: Any) -> None:
        """Allow changes again."""
        del ctx
        row.locked = False

    common: dict[str, Any] = {"model": model, "needs": "write", "effect": Effect.CHANGE, "params": {}}
    return (
        Operation(verb="lock", func=lock, label="Lock", icon="lock", **common),
        Operation(verb="unlock", func=unlock, label="Unlock", icon="lock", while_locked=True, **common),
    )


def _params(model: type[Any], func: Callable[..., Any]) -> dict[str, Param]:
    hints = get_type_hints(func, include_extras=True)
    known = _field_infos(model)
    params = {}
    for name, parameter in inspect.signature(func).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        hint, info, nullable = hints[name], None, False
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            info = next((extra for extra in extras if isinstance(extra, FieldInfo)), None)
        if get_origin(hint) in {Union, types.UnionType}:
            nullable = type(None) in get_args(hint)
            hint = next(arg for arg in get_args(hint) if arg is not type(None))
        ref_model = hint if isinstance(hint, type) and issubclass(hint, Resource) else None
        info = info or known.get(name) or (known.get(f"{name}_id") if ref_model else None)
        if info is None or (ref_model is not None and not isinstance(info.kind, Ref)):
            msg = f"{func.__name__}: parameter {name} is no field of {model.__name__} and not annotated with FieldInfo"
            raise TypeError(msg)
        required = parameter.default is inspect.Parameter.empty
        params[name] = Param(name, info, required, None if required else parameter.default, nullable, ref_model)
    return params


def _field_infos(model: type[Any]) -> dict[str, FieldInfo]:
    return {attr.key: attr.columns[0].info["field"] for attr in sa_inspect(model).column_attrs if "field" in getattr(attr.columns[0], "info", ())}
