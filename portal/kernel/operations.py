"""`run()`: the only write path. Console, API, S3, scheduler and CLI all change things through here, or through `acting()` for what is no resource.

Load in scope → authorize → validate → lock and check the state → quota → row, job, audit entry and event in ONE transaction.
Lock order, so that no two transactions wait for each other: references (sorted by type and id), the target, quota rows (sorted by dimension),
the head of the audit log.
"""

import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError, create_model
from pydantic import Field as PydanticField
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import IntegrityError, OperationalError

from portal.kernel import audit, authz, events, idempotency, quota, tags
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, PortalError, PreconditionFailed, StateConflict, Unavailable
from portal.kernel.fields import FieldInfo, Ref
from portal.kernel.ids import new_id
from portal.kernel.jobs import Job, JobStep, active_for
from portal.kernel.lookup import find, find_reference
from portal.kernel.resource import Resource, ResourceType, Tenancy

if TYPE_CHECKING:
    from portal.kernel.runner import StepRun

ModelT = TypeVar("ModelT", bound=Resource)
REFUSALS = (403, 409, 412, 429)


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
class Param:
    """One input of an operation."""

    name: str
    info: FieldInfo
    required: bool
    default: Any
    nullable: bool
    ref_model: type[Resource] | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """What a creating operation made, with what is shown once and never again (a private key); `queue` says if its steps are to run now."""

    rows: Sequence[Any]
    once: Mapping[str, str] = field(default_factory=dict)
    queue: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `run` did; `jobs` finish it where that takes time."""

    rows: Sequence[Any]
    jobs: Sequence[str] = ()
    once: Mapping[str, str] = field(default_factory=dict)
    replayed: bool = False

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
    it fails. An `internal` operation is the portal's own: no page and no endpoint offers it.
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
    icon: str = ""
    danger: bool = False
    bulk: bool = False
    partial: bool = False
    while_locked: bool = False
    in_menu: bool = True
    internal: bool = False

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.func) or self.label).splitlines()[0]

    def check(self, rtype: ResourceType) -> None:
        """Refuse, at start-up, a declaration that does not fit the type's life cycle."""
        known = set(rtype.states())
        named = {s for s in (self.holds, self.settles, self.fails, self.cancelled) if s} | set(self.when or ())
        if named - known or (self.steps and self.effect is not Effect.REMOVE and not self.settles):
            msg = f"{rtype.key}.{self.verb}: unknown states {sorted(named - known)} or no final state"
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


def update_operation(model: type[Any], *, label: str = "Edit", icon: str = "edit", needs: str = "write", also: Sequence[str] = ()) -> Operation:
    """The operation that changes the editable fields of a row, each on its own."""
    infos = {attr: info for attr, info in _field_infos(model).items() if info.editable or attr in also}
    params = {name: Param(name, info, required=False, default=None, nullable=False) for name, info in infos.items()}

    def update(ctx: Context, row: Any, **changes: Any) -> None:
        """Change name, description, tags and other editable fields."""
        del ctx
        for name, value in changes.items():
            setattr(row, name, value)

    return Operation(model=model, verb="update", func=update, label=label, needs=needs, effect=Effect.CHANGE, params=params, partial=True, icon=icon)


def lock_operations(model: type[Any]) -> tuple[Operation, Operation]:
    """Lock a row against every change, and unlock it."""

    def lock(ctx: Context, row: Any) -> None:
        """Refuse every change until it is unlocked."""
        del ctx
        row.locked = True

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
    return {attr.key: attr.columns[0].info["field"] for attr in sa_inspect(model).column_attrs if "field" in attr.columns[0].info}


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
        message = "is not a field of this request" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        found.setdefault(name, []).append(f"{where}: {message}" if where else message)
    return {name: texts[:10] for name, texts in found.items()}


def run(
    ctx: Context, op: Operation, target: str | None = None, data: Mapping[str, Any] | None = None,
    *, expected_version: int | None = None, strict: bool = True,
) -> Outcome:  # fmt: skip
    """Do it: the row is changed, the job queued, the entry written, or nothing happened and a PortalError says why."""
    rtype = ctx.registry.of(op.model)
    attempt = _Attempt(ctx, op, rtype, dict(data or {}), expected_version=expected_version, strict=strict)
    with refusals_audited(ctx, f"{rtype.key}.{op.verb}", attempt), transaction(ctx.db):
        outcome = idempotency.replay(ctx, attempt.fingerprint(target)) or attempt.execute(target)
    if outcome.jobs and not outcome.replayed:
        ctx.deliver(outcome.jobs)
    return outcome


@contextmanager
def acting(
    ctx: Context, action: str, subject: audit.Subject, *, target: authz.Target | None = None, details: Mapping[str, object] | None = None
) -> Iterator[None]:
    """The write path for what is no resource (sessions, tokens, memberships): one transaction, authorized if `target` is given, audited."""
    with refusals_audited(ctx, action, subject), transaction(ctx.db):
        if target is not None:
            authz.authorize(ctx, action, target)
        yield
        audit.record(ctx, action, subject, details=details)


@contextmanager
def refusals_audited(ctx: Context, action: str, about: "audit.Subject | _Attempt") -> Iterator[None]:
    """Turn database errors into refusals, and write each refusal into the audit log in a transaction of its own."""
    try:
        try:
            yield
        except IntegrityError as error:
            raise Conflict("Another change came first: something with this name exists already, or what it refers to is gone.") from error
        except OperationalError as error:
            raise Unavailable("The database could not take the change; nothing was changed. Try again in a moment.") from error
    except PortalError as error:
        if error.status in REFUSALS:
            subject = about.subject if isinstance(about, _Attempt) else about
            with transaction(ctx.db):
                status = "denied" if isinstance(error, Forbidden) else "failure"
                audit.record(ctx, action, subject, status=status, error=error.message, details=error.details)
        raise


class _Attempt:
    """One run of one operation, from the loaded target to the written entry."""

    def __init__(self, ctx: Context, op: Operation, rtype: ResourceType, data: dict[str, Any], *, expected_version: int | None, strict: bool) -> None:
        self.ctx, self.op, self.rtype, self.data, self.strict = ctx, op, rtype, canonical(op, data), strict
        self.expected_version = expected_version
        self.action = f"{rtype.key}.{op.verb}"
        self.subject = audit.Subject(rtype.key, project_id=ctx.project_id)

    def fingerprint(self, target: str | None) -> idempotency.Fingerprint:
        return idempotency.Fingerprint(self.action, self.ctx.project_id, target or "", self.data)

    def execute(self, target: str | None) -> Outcome:
        outcome = self._create() if self.op.effect is Effect.CREATE else self._change(target or "")
        idempotency.remember(self.ctx, outcome.rows, outcome.jobs)
        return outcome

    def _create(self) -> Outcome:
        ctx, op, rtype = self.ctx, self.op, self.rtype
        project_id = ctx.project_id if rtype.tenancy is not Tenancy.PLATFORM else None
        if rtype.tenancy is Tenancy.PROJECT and project_id is None:
            raise InvalidRequest("Choose a project first: you are a member of none.")
        authz.authorize(ctx, self.action, authz.Target(project_id, ctx.principal.user_id, label=f"a new {rtype.label.lower()}"))
        inputs = self._inputs()
        made = op.func(ctx, **inputs)
        made = made if isinstance(made, Created) else Created([made])
        jobs = [job for row in made.rows if (job := self._insert(row, project_id, queue=made.queue)) is not None]
        return Outcome(made.rows, jobs, made.once)

    def _insert(self, row: Any, project_id: str | None, *, queue: bool) -> str | None:
        ctx, rtype = self.ctx, self.rtype
        if rtype.tenancy is not Tenancy.PLATFORM and row.project_id is None:
            row.project_id = project_id
        row.owner_id = row.owner_id or ctx.principal.user_id
        if row.id is None:
            row.id = new_id(rtype.prefix)
        if rtype.lifecycle is not None and row.state is None:
            row.state = self.op.holds or rtype.lifecycle.initial
        self.subject = self._about(row)
        refuse_duplicate(ctx, rtype, row)
        ctx.db.add(row)
        ctx.db.flush()
        tags.store(ctx.db, rtype.key, row)
        if row.project_of() is not None:
            quota.reserve(ctx.db, row.project_of(), row.id, {**rtype.amounts(row), rtype.count_dimension: 1})
        job_id = enqueue(ctx, self.op, rtype, row, self.data) if self.op.steps and queue else None
        self._tell(row, job_id, before={}, after=snapshot(rtype, row))
        return job_id

    def _change(self, target: str) -> Outcome:
        ctx, op, rtype = self.ctx, self.op, self.rtype
        seen = find(ctx, rtype, target)
        self.subject = self._about(seen)
        authz.authorize(ctx, self.action, authz.target_of(seen))
        inputs = self._inputs()
        row = find(ctx, rtype, target, lock=True)
        self._check_row(row)
        before = snapshot(rtype, row)
        previous_name = row.name
        op.func(ctx, row, **inputs)
        if row.name != previous_name:
            refuse_duplicate(ctx, rtype, row)
        if op.holds and rtype.lifecycle is not None:
            set_state(rtype, row, op.holds)
        row.version, row.updated_at = row.version + 1, now()
        ctx.db.flush()
        job_id = self._after_change(row)
        self._tell(row, job_id, before=before, after=snapshot(rtype, row))
        return Outcome([row], [job_id] if job_id else [])

    def _after_change(self, row: Any) -> str | None:
        ctx, op, rtype = self.ctx, self.op, self.rtype
        if op.steps:
            if op.effect is Effect.CHANGE:
                reserve_for_change(ctx, rtype, row)
            return enqueue(ctx, op, rtype, row, self.data)
        if op.effect is Effect.REMOVE:
            end(ctx, row)
        elif "tags" in self.data:
            tags.store(ctx.db, rtype.key, row)
        return None

    def _check_row(self, row: Any) -> None:
        if self.expected_version is not None and row.version != self.expected_version:
            raise PreconditionFailed(
                f"{row.name} was changed meanwhile (version {row.version}, you have {self.expected_version}). Load it again and repeat the change.",
                details={"version": row.version, "expected": self.expected_version},
            )
        check_ready(self.ctx, self.op, row)

    def _inputs(self) -> dict[str, Any]:
        return inputs_of(self.ctx, self.op, self.data, strict=self.strict)

    def _tell(self, row: Any, job_id: str | None, *, before: dict[str, object], after: dict[str, object]) -> None:
        changed = sorted(name for name in after if after[name] != before.get(name) and name not in {"updated_at", "state_at"})
        details: dict[str, object] = {
            "before": {name: before[name] for name in changed if name in before},
            "after": {name: after[name] for name in changed},
            "input": {name: value for name, value in self.data.items() if name in self.op.params},
        }
        if job_id:
            details["job_id"] = job_id
        about = self._about(row)
        audit.record(self.ctx, self.action, about, details=details)
        payload = {"state": getattr(row, "state", ""), "job_id": job_id or ""}
        events.emit(self.ctx, f"{self.rtype.key}.{self.op.verb}", resource_id=row.id, name=row.name, project_id=about.project_id, payload=payload)

    def _about(self, row: Any) -> audit.Subject:
        return audit.Subject(self.rtype.key, row.id or "", row.name, row.project_of())


def check_ready(ctx: Context, op: Operation, row: Any) -> None:
    """Raise Conflict or StateConflict if the row is locked, in a state that does not allow the operation, or busy."""
    if row.locked and not op.while_locked:
        raise Conflict(f"{row.name} is locked against changes. Unlock it first.", details={"locked": True})
    if reason := state_reason(op, row):
        raise StateConflict(reason, details={"state": row.state, "allowed_states": sorted(op.when or ())})
    if op.steps and (job := active_for(ctx.db, row.id)) is not None:
        raise StateConflict(f"{row.name} is busy: {job.label}. Wait until the job ends or cancel it.", details={"job_id": job.id})


def refuse_unless_ready(ctx: Context, op: Operation, target: str) -> None:
    """Raise what `run` would raise for who asks and for the state of the target, before something costly is begun; `run` asks again."""
    row = find(ctx, ctx.registry.of(op.model), target)
    authz.authorize(ctx, ctx.registry.name_of(op), authz.target_of(row))
    check_ready(ctx, op, row)


def canonical(op: Operation, data: Mapping[str, Any]) -> dict[str, Any]:
    """Input under the names of the parameters: what is kept with the job and in the audit log must not depend on the alias that was used."""
    found = dict(data)
    for name, param in op.params.items():
        given = [alias for alias in param.info.aliases if alias in found]
        # Two names for one thing stay as they are: validation refuses the second.
        if name not in found and len(given) == 1:
            found[name] = found.pop(given[0])
    return found


def inputs_of(ctx: Context, op: Operation, data: Mapping[str, Any], *, strict: bool = True) -> dict[str, Any]:
    """Checked input. References are loaded and locked before the target, sorted, so that everybody locks in the same order."""
    inputs = validate(op, data, strict=strict)
    references = sorted((p for p in op.params.values() if p.ref_model is not None), key=lambda p: str(p.ref_model))
    inputs.update({p.name: find_reference(ctx, p, inputs[p.name]) for p in references if inputs.get(p.name) is not None})
    return inputs


def reserve_for_change(ctx: Context, rtype: ResourceType, row: Any) -> None:
    """While a change is under way the project holds the larger of before and after; what was given back after a failure is taken again."""
    if row.project_of() is not None:
        held = quota.held_by(ctx.db, row.id)
        quota.reserve(ctx.db, row.project_of(), row.id, {d: max(n, held.get(d, 0)) for d, n in rtype.amounts(row).items()})


def enqueue(ctx: Context, op: Operation, rtype: ResourceType, row: Any, data: Mapping[str, Any]) -> str:
    """Queue the job of an operation within the caller's transaction; its id."""
    names = {name: value for name, value in data.items() if name in op.params}
    job = Job(
        kind=f"{rtype.key}.{op.verb}", label=f"{op.label} {row.name}"[:255], resource_type=rtype.key, resource_id=row.id, resource_name=row.name,
        project_id=row.project_of(), user_id=ctx.principal.user_id, username=ctx.principal.username, request_id=ctx.request_id,
        input=audit.masked(names), steps=[JobStep(position=number, name=step.name, label=step.label) for number, step in enumerate(op.steps)],
    )  # fmt: skip
    ctx.db.add(job)
    ctx.db.flush()
    return job.id


def set_state(rtype: ResourceType, row: Any, state: str, reason: str = "") -> None:
    """Move a row to another state, if its life cycle allows that."""
    if rtype.lifecycle is None or row.state == state:
        row.state_reason = reason
        return
    rtype.lifecycle.check(row.state, state)
    row.state, row.state_reason, row.state_at = state, reason, now()


def state_reason(op: Operation, row: Any) -> str:
    """Why the row's state does not allow the operation; empty where it does."""
    if row.deleted_at is not None:
        return f"{row.name} is gone."
    if op.when is None or row.state in op.when:
        return ""
    return f"{row.name} is {row.state}; {op.label.lower()} needs it to be {' or '.join(sorted(op.when))}."


def end(ctx: Context, row: Any) -> None:
    """Take a row out of the lists and give its quota back; its record stays for a while."""
    row.deleted_at = row.updated_at = now()
    quota.release(ctx.db, row.id)
    tags.drop(ctx.db, row.id)


def refuse_duplicate(ctx: Context, rtype: ResourceType, row: Any) -> None:
    """Raise Conflict if a live row of the same owner has this name already; the database's own constraint is the second line."""
    model = rtype.model
    query = ctx.db.query(model.id).filter(model.name == row.name, model.deleted_at.is_(None), model.id != (row.id or ""))
    if hasattr(model, "project_id"):
        query = query.filter(model.project_id.is_(None) if row.project_id is None else model.project_id == row.project_id)
    with ctx.db.no_autoflush:
        if query.first() is not None:
            problem = f'"{row.name}" is taken by another {rtype.label.lower()} here. Choose another name.'
            raise Conflict(f"name: {problem}", details={"name": [problem]})


def snapshot(rtype: ResourceType, row: Any) -> dict[str, object]:
    """Field values of a row, for the audit entry's before and after."""
    return {
        name: getattr(row, name) for name, info in rtype.fields().items() if info.exposed and name not in {"created_at", "owner_id", "project_id"}
    }
