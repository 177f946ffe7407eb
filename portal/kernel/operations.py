"""`run()`: the only write path. Console, API, S3, scheduler and CLI all change things through here, or through `acting()` for what is no resource.

Load in scope → authorize → validate → lock and check the state → quota → row, job, audit entry and event in ONE transaction.
No two transactions wait for each other, since all lock in one order: references (sorted by type and id), the target, networks and addresses, users,
quota rows of projects, then of users (each sorted by holder and dimension), the head of the audit log.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import IntegrityError, OperationalError

from portal.kernel import audit, authz, events, idempotency, tags
from portal.kernel.context import Context
from portal.kernel.db import now, out_of_service, transaction
from portal.kernel.declare import Created, Effect, Operation, Outcome
from portal.kernel.errors import (
    ConfirmationRequired,
    Conflict,
    Forbidden,
    InvalidRequest,
    PortalError,
    PreconditionFailed,
    StateConflict,
    Unavailable,
)
from portal.kernel.fields import Ref, RefList
from portal.kernel.inputs import as_understood, canonical, inputs_of, says_something, variants
from portal.kernel.jobs import Job, JobStep, active_for
from portal.kernel.lookup import find
from portal.kernel.projects import refuse_ending
from portal.kernel.proof import require_proof_for
from portal.kernel.resource import ResourceType, Tenancy
from portal.kernel.rows import complete, counted, end, forget_along, hold_along, refuse_duplicate, reserve_for_change, set_state, snapshot, write
from portal.kernel.wording import within

REFUSALS = (403, 409, 412, 429)
# What a restricted token may do to its own user: make and replace tokens that may do no more than it.
WITH_ANY_SCOPE = "identity.api_token."
OF_APPLICATION = "oauth:"
# How long a change waits for a brief job on its target (the jobs of urgent operations are), and how often it looks.
BRIEF_S, LOOK_S = 5.0, 0.05


def run(
    ctx: Context, op: Operation, target: str | None = None, data: Mapping[str, Any] | None = None,
    *, expected_version: int | None = None, strict: bool = True,
) -> Outcome:  # fmt: skip
    """Do it: the row is changed, the job queued, the entry written, or nothing happened and a PortalError says why."""
    rtype = ctx.registry.of(op.model)
    attempt = _Attempt(ctx, op, rtype, dict(data or {}), expected_version=expected_version, strict=strict)
    with refusals_audited(ctx, f"{rtype.key}.{op.verb}", attempt):
        outcome = _after_brief_jobs(attempt, target)
    if (jobs := [*outcome.jobs, *ctx.also_queued]) and not outcome.replayed:
        ctx.deliver(jobs)
    return outcome


def _after_brief_jobs(attempt: "_Attempt", target: str | None) -> Outcome:
    """Try in a transaction, and again while a brief job is at work on the target: it ends in a moment."""
    deadline = time.monotonic() + BRIEF_S
    while True:
        try:
            with transaction(attempt.ctx.db):
                return attempt.once(target)
        except _BusyBriefly:
            if time.monotonic() >= deadline:
                raise
        time.sleep(LOOK_S)


@contextmanager
def acting(
    ctx: Context, action: str, subject: audit.Subject, *, target: authz.Target | None = None, details: Mapping[str, object] | None = None,
    permission: str = "",
) -> Iterator[None]:  # fmt: skip
    """The write path for what is no resource (sessions, tokens, memberships): one transaction, authorized if `target` is given, audited.

    `permission` is what it needs where that is not named like the action.
    """
    forget_along(ctx)
    with refusals_audited(ctx, action, subject), transaction(ctx.db):
        decided = {}
        if target is not None:
            decided = _decided(authz.authorize(ctx, permission or action, target))
            require_proof_for(ctx, permission or action)
        else:
            refuse_restricted(ctx, action)
        yield
        # What the block has learned meanwhile is told, too.
        audit.record(ctx, action, subject, details={**(details or {}), **decided})
    if ctx.also_queued:
        ctx.deliver(ctx.also_queued)


def _decided(decision: authz.Decision) -> dict[str, object]:
    """What allowed an action, for its entry; the portal itself needs no permission."""
    return {"decision": {"policy": decision.policy, "statement": decision.statement}} if decision.statement else {}


def refuse_restricted(ctx: Context, action: str) -> None:
    """Raise Forbidden for a credential that has no say in the caller's own account: of an application, of a role, or restricted to scopes."""
    if ctx.principal.assumed is not None:
        # Whatever it made would outlive the role's session.
        raise Forbidden(f"A session of role {ctx.principal.assumed.role_name} has no say in what concerns its user's own account.")
    refuse_application(ctx)
    if ctx.principal.limits and not action.startswith(WITH_ANY_SCOPE):
        raise Forbidden("This token is restricted to scopes; what concerns the account itself needs one that is not.")


def refuse_application(ctx: Context) -> None:
    """Raise Forbidden for an application: what it learned or made of the account would outlive the user's consent."""
    if ctx.principal.credential.startswith(OF_APPLICATION):
        raise Forbidden("An application has no say in what concerns the account itself: sign in, or use a token of your own.")


@contextmanager
def refusals_audited(ctx: Context, action: str, about: "audit.Subject | _Attempt") -> Iterator[None]:
    """Turn database errors into refusals, and write each refusal into the audit log in a transaction of its own."""
    try:
        try:
            yield
        except IntegrityError as error:
            raise Conflict("Another change came first: something with this name exists already, or what it refers to is gone.") from error
        except OperationalError as error:
            raise Unavailable(out_of_service(error)) from error
    except PortalError as error:
        if error.status in REFUSALS and not isinstance(error, ConfirmationRequired):
            subject = about.subject if isinstance(about, _Attempt) else about
            with transaction(ctx.db):
                status = "denied" if isinstance(error, Forbidden) else "failure"
                audit.record(ctx, action, subject, status=status, error=error.message, details=error.details)
            error.is_audited = True
        raise


class _BusyBriefly(StateConflict):
    """A job that will not take long is at work on the target."""


class _Attempt:
    """One run of one operation, from the loaded target to the written entry."""

    def __init__(self, ctx: Context, op: Operation, rtype: ResourceType, data: dict[str, Any], *, expected_version: int | None, strict: bool) -> None:
        self.ctx, self.op, self.rtype, self.strict = ctx, op, rtype, strict
        self.given = self.data = canonical(op, data)
        self.expected_version = expected_version
        # What people had said of the row when its version was the expected one, and a brief job was at work on it.
        self.awaited: Mapping[str, Any] | None = None
        self.action = f"{rtype.key}.{op.verb}"
        ctx.inputs = self.data
        self.subject = audit.Subject(rtype.key, project_id=ctx.project_id)
        self.decided: dict[str, object] = {}
        # What conditions were shown; an operation that finds out more sets the context's anew.
        self.authorized: Mapping[str, Any] = ctx.inputs

    def once(self, target: str | None) -> Outcome:
        """Do it within the caller's transaction, or give what was done before under the same key."""
        forget_along(self.ctx)
        self.ctx.inputs = self.data = self.given
        outcome = idempotency.replay(self.ctx, self.fingerprint(target))
        if outcome is None:
            return self.execute(target)
        self.authorize_again(outcome.rows[0])
        return outcome

    def fingerprint(self, target: str | None) -> idempotency.Fingerprint:
        return idempotency.Fingerprint(self.action, self.ctx.project_id, target or "", self.data)

    def execute(self, target: str | None) -> Outcome:
        outcome = self._create() if self.op.effect is Effect.CREATE else self._change(target or "")
        idempotency.remember(self.ctx, outcome)
        return outcome

    def _create(self) -> Outcome:
        ctx, op, rtype = self.ctx, self.op, self.rtype
        project_id = ctx.project_id if rtype.tenancy is not Tenancy.PLATFORM else None
        if rtype.tenancy is Tenancy.PROJECT and project_id is None:
            raise InvalidRequest("Choose a project first: you are a member of none.")
        target = self._new()
        inputs = self._authorized_inputs(target)
        made = op.func(ctx, **inputs)
        made = made if isinstance(made, Created) else Created([made])
        for row in made.rows:
            self._authorize_result(target, row)
        home = None if made.everywhere else project_id
        jobs = [job for row in made.rows if (job := self._insert(row, home, inputs, queue=made.queue)) is not None]
        return Outcome(made.rows, jobs, made.once)

    def _new(self) -> authz.Target:
        """What does not exist yet, as policies see it."""
        project_id = self.ctx.project_id if self.rtype.tenancy is not Tenancy.PLATFORM else None
        return authz.Target(project_id, self.ctx.principal.user_id, label=f"a new {within(self.rtype.label)}")

    def authorize_again(self, row: Any) -> None:
        """What was given before is given again only to a credential that may ask for it. Raises Forbidden."""
        self._authorized_inputs(self._new() if self.op.effect is Effect.CREATE else authz.target_of(row), judge=False)

    def again(self, row_id: str, check: Callable[[Any], None]) -> Any:
        """Ask, check and set once more what a failed job was to do."""
        is_new = self.op.effect is Effect.CREATE
        seen = self.ctx.db.get(self.rtype.model, row_id)
        target = self._new() if is_new or seen is None else authz.target_of(seen)
        inputs = self._authorized_inputs(target)
        if self.op.ahead is not None and seen is not None:
            self.op.ahead(self.ctx, seen, inputs)
        # After what it refers to.
        row: Any = self.ctx.db.get(self.rtype.model, row_id, with_for_update=True, populate_existing=True)
        check(row)
        if self.op.effect is not Effect.REMOVE:
            refuse_ending(self.ctx.db, row.project_of())
        _refuse_protected(self.ctx, self.op, row)
        if not is_new:
            self.op.func(self.ctx, row, **inputs)
        self._authorize_result(target, row)
        return row

    def _insert(self, row: Any, project_id: str | None, inputs: Mapping[str, Any], *, queue: bool) -> str | None:
        ctx, rtype = self.ctx, self.rtype
        needs_job = self.op.needs_job(ctx.settings)
        complete(ctx, rtype, row, project_id, state=self.op.state_at_first(ctx.settings))
        self.subject = self._about(row)
        write(ctx, rtype, row)
        _refuse_locked(rtype, row)
        if self.op.along is not None:
            self.op.along(ctx, row, inputs)
            # What was chosen for whoever left it out is judged as well.
            self._authorize_result(self._new(), row)
        # What has a life cycle is still to be made: its job, or the upload it waits for, says when it is there.
        settled = rtype.lifecycle is None or not needs_job
        hold_along(ctx, (row, counted(rtype, row), settled))
        job_id = enqueue(ctx, self.op, rtype, row, self.data) if needs_job and queue else None
        self._tell(row, job_id, before={}, after=snapshot(rtype, row))
        return job_id

    def _change(self, target: str) -> Outcome:
        ctx, op, rtype = self.ctx, self.op, self.rtype
        seen = find(ctx, rtype, target)
        self.subject = self._about(seen)
        before_it = authz.target_of(seen)
        inputs = self._authorized_inputs(before_it)
        if op.ahead is not None:
            op.ahead(ctx, seen, inputs)
        row = find(ctx, rtype, target, lock=True)
        if op.effect is not Effect.REMOVE:
            refuse_ending(ctx.db, row.project_of())
        self._check_row(row)
        before = snapshot(rtype, row)
        previous_name = row.name
        part = op.func(ctx, row, **inputs) or ""
        self._authorize_result(before_it, row)
        if row.name != previous_name:
            refuse_duplicate(ctx, rtype, row)
        if (state := op.state_at_first(ctx.settings)) and rtype.lifecycle is not None:
            set_state(rtype, row, state)
        row.version, row.updated_at = row.version + 1, now()
        ctx.db.flush()
        if op.along is not None:
            op.along(ctx, row, inputs)
        job_id = self._after_change(row)
        self._tell(row, job_id, before=before, after=snapshot(rtype, row))
        return Outcome([row], [job_id] if job_id else [], part=part)

    def _after_change(self, row: Any) -> str | None:
        ctx, op, rtype = self.ctx, self.op, self.rtype
        if op.needs_job(ctx.settings):
            if op.effect is Effect.CHANGE:
                reserve_for_change(ctx, rtype, row)
            return enqueue(ctx, op, rtype, row, self.data)
        if op.effect is Effect.REMOVE:
            end(ctx, row)
        elif "tags" in self.data:
            tags.store(ctx.db, rtype.key, row)
        return None

    def _check_row(self, row: Any) -> None:
        said = {name: deepcopy(getattr(row, name)) for name, info in self.rtype.fields().items() if info.editable}
        said |= {"locked": getattr(row, "locked", None), "deleted_at": getattr(row, "deleted_at", None)}
        # The end of a job counts as a change, too: what people say counts for who waited for it.
        if self.expected_version is not None and row.version != self.expected_version and said != self.awaited:
            raise PreconditionFailed(
                f"{row.name} was changed meanwhile (version {row.version}, you have {self.expected_version}). Load it again and repeat the change.",
                details={"version": row.version, "expected": self.expected_version},
            )
        self.awaited = said
        check_ready(self.ctx, self.op, row)

    def _authorized_inputs(self, target: authz.Target, *, judge: bool = True) -> dict[str, Any]:
        """The checked input, if it is allowed. Conditions see it as it is understood: rows by their id however they were named, and defaults.

        What is wrong with it is told, if somebody is to `judge` it, only to who may do it with what they wrote.
        """
        ctx, problem = self.ctx, None
        try:
            inputs = inputs_of(ctx, self.op, self.data, strict=self.strict, project_id=target.project_id)
            ctx.inputs = as_understood(ctx, self.op, inputs, self.data, project_id=target.project_id)
            # A job that is tried again means the same then, whatever has that name by that time.
            self.data = {name: ctx.inputs.get(name, value) if self._names_others(name) else value for name, value in self.data.items()}
        except PortalError as error:
            inputs, problem = {}, error
        self.decided = _decided(self._authorize(target))
        require_proof_for(ctx, self.action)
        if problem is not None and judge:
            raise problem
        self.authorized = ctx.inputs
        return inputs

    def _authorize_result(self, target: authz.Target, row: Any) -> None:
        """Ask again with what the operation itself filled in or looked up: a size that was left out is one that conditions look at as well."""
        ctx, filled = self.ctx, {}
        for name, param in self.op.params.items() if not self.op.partial else ():
            found = getattr(row, f"{name}_id" if param.ref_model is not None else name, None)
            # A name that was meant for several is another for each.
            if says_something(found) and (name not in ctx.inputs or (isinstance(found, str | int | float) and found != ctx.inputs[name])):
                filled[name] = found
        if filled or ctx.inputs is not self.authorized:
            ctx.inputs = {**ctx.inputs, **filled}
            self._authorize(target)

    def _names_others(self, name: str) -> bool:
        return name in self.op.params and isinstance(self.op.params[name].info.kind, Ref | RefList)

    def _authorize(self, target: authz.Target) -> authz.Decision:
        for inputs in variants(self.ctx.inputs):
            decision = authz.authorize(replace(self.ctx, inputs=inputs), self.action, target)
        return decision

    def _tell(self, row: Any, job_id: str | None, *, before: dict[str, object], after: dict[str, object]) -> None:
        changed = sorted(name for name in after if after[name] != before.get(name) and name not in {"updated_at", "state_at"})
        details: dict[str, object] = {
            "before": {name: before[name] for name in changed if name in before},
            "after": {name: after[name] for name in changed},
            "input": {name: value for name, value in self.data.items() if name in self.op.params},
            **self.decided,
        }
        if job_id:
            details["job_id"] = job_id
        about = self._about(row)
        audit.record(self.ctx, self.action, about, details=details)
        payload = {"state": getattr(row, "state", ""), "job_id": job_id or ""}
        events.emit(self.ctx, f"{self.rtype.key}.{self.op.verb}", resource_id=row.id, name=row.name, project_id=about.project_id, payload=payload)

    def _about(self, row: Any) -> audit.Subject:
        return audit.Subject(self.rtype.key, row.id or "", row.name, row.project_of())


def run_again(ctx: Context, op: Operation, row_id: str, data: Mapping[str, Any], check: Callable[[Any], None]) -> Any:
    """What `run` asks, checks and sets, for a row that a failed job left behind, within the caller's transaction; gives the row, locked.

    `check` judges its state: it gets the locked row, or None.
    """
    attempt = _Attempt(ctx, op, ctx.registry.of(op.model), dict(data), expected_version=None, strict=False)
    return attempt.again(row_id, check)


def check_ready(ctx: Context, op: Operation, row: Any) -> None:
    """Raise Conflict or StateConflict if the row is locked, in a state that does not allow the operation, or busy."""
    _refuse_protected(ctx, op, row)
    if reason := state_reason(op, row):
        raise StateConflict(reason, details={"state": row.state, "allowed_states": sorted(op.when or ())})
    if op.needs_job(ctx.settings) and (job := active_for(ctx.db, row.id)) is not None:
        # One that failed waits for its next try, which is no moment.
        busy = _BusyBriefly if job.kind in ctx.registry.urgent() and job.state != "retrying" else StateConflict
        raise busy(f"{row.name} is busy: {job.label}. Wait until the job ends or cancel it.", details={"job_id": job.id})


def _refuse_protected(ctx: Context, op: Operation, row: Any) -> None:
    rtype = ctx.registry.of(op.model)
    if not op.while_locked:
        _refuse_locked(rtype, row)
    if reason := protection(rtype, op, row):
        raise Conflict(reason, details={op.unless: True})


def lock_reason(rtype: ResourceType, row: Any, *, called: str = "") -> str:
    """Which lock forbids changes of a row, its own or that of what it is part of; empty where none does."""
    if row.locked:
        return f"{called or row.name} is locked against changes. Unlock it first."
    whole = next((each for each in rtype.part_of(row) if each.locked), None)
    return f"{whole.name} is locked against changes, and so is what is part of it. Unlock it first." if whole is not None else ""


def _refuse_locked(rtype: ResourceType, row: Any, *, called: str = "") -> None:
    if reason := lock_reason(rtype, row, called=called):
        raise Conflict(reason, details={"locked": True})


def also_changes(ctx: Context, action: str, row: Any) -> None:
    """Refuse an operation that changes this row as well, for who may not do that, and while a lock forbids it. What nobody shows the caller is not named."""
    rtype, target = ctx.registry.of(type(row)), authz.target_of(row)
    is_seen = authz.decide(ctx, f"{rtype.key}.read", target).allowed
    authz.authorize(ctx, action, target if is_seen else replace(target, label="something that you may not see"))
    _refuse_locked(rtype, row, called=row.name if is_seen else "Something that you may not see")


def protection(rtype: ResourceType, op: Operation, row: Any) -> str:
    """Why a field of the row forbids the operation; empty where none does."""
    if not op.unless or not getattr(row, op.unless):
        return ""
    return f"{row.name} has {within(rtype.fields()[op.unless].label)}. Switch that off first."


def refuse_unless_ready(ctx: Context, op: Operation, target: str) -> None:
    """Raise what `run` would raise for who asks and for the state of the target, before something costly is begun; `run` asks again."""
    row = find(ctx, ctx.registry.of(op.model), target)
    authz.authorize(ctx, ctx.registry.name_of(op), authz.target_of(row))
    check_ready(ctx, op, row)


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


def state_reason(op: Operation, row: Any) -> str:
    """Why the row's state does not allow the operation; empty where it does."""
    if row.deleted_at is not None:
        return f"{row.name} is gone."
    if op.when is None or row.state in op.when:
        return ""
    return f"{row.name} is {row.state}; {within(op.label)} needs it to be {' or '.join(sorted(op.when))}."
