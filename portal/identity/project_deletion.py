"""Deleting a project: what would go with it, the job that takes it apart, and the end of it.

The job deletes what is in the project through the same operations as anybody, what others refer to last, so that nothing stays behind on a host.
As long as it runs nothing new is made in the project; once nothing is left, its members, accounts and policies go in one transaction. Where
something cannot be deleted the job ends and says so: the project stays, with what is left in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, update

from portal.identity import iam
from portal.identity.deletion import remove
from portal.identity.models import SERVICE, ApiToken, Membership, Project, User, UserSession
from portal.identity.projects import NAME_MAX, project_find, project_locked, project_subject, project_target
from portal.kernel import audit, quota_requests
from portal.kernel.alerts import Notice, alert
from portal.kernel.authz import authorize
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.declare import AskedWork, Operation
from portal.kernel.errors import Conflict, NotFound, PortalError
from portal.kernel.fields import Ref
from portal.kernel.jobs import ACTIVE, Claim, Job, JobStep, active_for, held
from portal.kernel.leaving import NAMED, Listed, listed, refusals, removal, rows_listed
from portal.kernel.operations import acting, run
from portal.kernel.quota import Quota
from portal.kernel.quota_days import QuotaHistory
from portal.kernel.quota_requests import QuotaRequest
from portal.kernel.resource import ResourceType, Tenancy
from portal.kernel.rows import end
from portal.kernel.runner import NotYet

DELETE = "identity.project.delete"
DELETING = AskedWork(DELETE, cancelled="What was deleted by then is gone; the project stays with what is left.")
# How many are told to go at a time: other projects have work to be done as well.
ROUND = 50
ACCESS = (iam.IamGroup, iam.IamPolicy, iam.IamRole)


@dataclass(frozen=True, slots=True)
class ProjectLeaving:
    """Everything that goes with a project, what else ends with it, and what is in the way of its deletion."""

    resources: Sequence[Listed]
    gone: Sequence[Listed]
    in_the_way: Sequence[str]


def project_leaving(ctx: Context, project_id: str) -> ProjectLeaving:
    """What the deletion of a project would do. Raises NotFound or Forbidden."""
    project = project_find(ctx, project_id)
    authorize(ctx, DELETE, project_target(project))
    resources = [found for rtype in _types(ctx) if (found := rows_listed(ctx, rtype, *_live(rtype, project_id)))]
    members = select(User.username).join(Membership, Membership.user_id == User.id).where(Membership.project_id == project_id)
    asked = select(QuotaRequest.dimension).where(QuotaRequest.project_id == project_id, QuotaRequest.state == "pending")
    going = [
        ("Memberships", members.where(User.kind != SERVICE)),
        ("Service accounts with their keys", members.where(User.kind == SERVICE)),
        ("Requests for more quota", asked),
    ]
    gone = [found for label, query in going if (found := listed(ctx, label, query))]
    return ProjectLeaving(resources, gone, _in_the_way(ctx, project))


def _in_the_way(ctx: Context, project: Project) -> list[str]:
    return [reason for rtype in _types(ctx) for reason in refusals(ctx, rtype, *_live(rtype, project.id))]


def project_delete(ctx: Context, project_id: str) -> Job:
    """Queue the job that deletes a project with everything in it.

    Raises NotFound, Forbidden, ConfirmationRequired, StateConflict while it is being deleted already, and Conflict where something is in the way.
    """
    project = project_find(ctx, project_id)
    job = Job(
        kind=DELETE, label=f"Delete project {project.name}", resource_type="identity.project", resource_id=project.id, resource_name=project.name,
        project_id=project.id, user_id=ctx.principal.user_id, username=ctx.principal.username, request_id=ctx.request_id,
        steps=[JobStep(position=0, name="delete", label="Delete everything in it")],
    )  # fmt: skip
    with acting(ctx, DELETE, project_subject(project), target=project_target(project)):
        project_locked(ctx, project)
        if reasons := _in_the_way(ctx, project):
            raise Conflict(f"Project {project.name} cannot be deleted. {' '.join(reasons)}", details={"in_the_way": reasons})
        ctx.db.add(job)
        ctx.db.flush()
    ctx.deliver([job.id])
    return job


def delete_project(ctx: Context, claim: Claim) -> None:
    """One round of the job: tell what can go to go, or end the project. Raises NotYet until that is done, Conflict where something cannot go."""
    job = ctx.db.get_one(Job, claim.job_id)
    project = ctx.db.get_one(Project, job.resource_id)
    ctx.db.expunge_all()
    if project.deleted_at is not None:
        return
    left = sum(_count(ctx, rtype.model, *_live(rtype, project.id)) for rtype in _contents(ctx))
    if left and not _is_busy(ctx, project.id, job) and (refused := _remove_some(ctx, project.id, job)):
        _tell_failed(ctx, claim, project, refused)
        raise Conflict(f"What is left of project {project.name} stays. {' '.join(refused)}")
    if left:
        raise NotYet("One thing is left." if left == 1 else f"{left:,} things are left.")
    _finish(ctx, claim, project.id)


def _remove_some(ctx: Context, project_id: str, job: Job) -> list[str]:
    """Run the removal of some of what nothing else in the project refers to; what could not go, and why.

    What is still needed is no reason to give up as long as something else goes, be it what refers to nothing else but is referred to.
    """
    there = {rtype.key: rtype for rtype in _contents(ctx) if _count(ctx, rtype.model, *_live(rtype, project_id))}
    there = {key: rtype for key, rtype in there.items() if rtype.goes_with not in there}
    referred = {key for rtype in there.values() for key in _references(rtype) if key != rtype.key}
    needed: list[str] = []
    for is_last in (False, True):
        types = [rtype for key, rtype in there.items() if (key in referred) is is_last]
        found = [_remove(ctx, removal(rtype), row_id, job) for rtype in types for row_id in _first(ctx, rtype, project_id)]
        if failed := [each.reason for each in found if each.is_final]:
            return failed[:NAMED]
        needed += [each.reason for each in found if each.reason]
        if not all(each.reason for each in found):
            return []
    return needed[:NAMED]


def _first(ctx: Context, rtype: ResourceType, project_id: str) -> Sequence[str]:
    return ctx.db.scalars(select(rtype.model.id).where(*_live(rtype, project_id)).order_by(rtype.model.id).limit(ROUND)).all()


@dataclass(frozen=True, slots=True)
class _Told:
    """What came of telling something to go: nothing is in the way, or a reason; a final one is not asked again."""

    reason: str = ""
    is_final: bool = False


def _remove(ctx: Context, op: Operation, row_id: str, job: Job) -> _Told:
    """Delete one, unless something is still at work on it."""
    if failure := _failure(ctx, op, row_id, job):
        return _Told(failure, is_final=True)
    is_busy = active_for(ctx.db, row_id) is not None
    ctx.db.rollback()
    if is_busy:
        return _Told()
    try:
        # What it holds goes as well.
        run(ctx, op, row_id, {"force": True} if "force" in op.params else None)
    except NotFound:
        # It went with something else.
        return _Told()
    except PortalError as error:
        return _Told(error.message, is_final=not isinstance(error, Conflict))
    return _Told()


def _failure(ctx: Context, op: Operation, row_id: str, job: Job) -> str:
    """Why an earlier round's removal of a row failed; empty if it did not."""
    tried = (
        Job.resource_id == row_id,
        Job.kind == ctx.registry.name_of(op),
        Job.created_at >= job.created_at,
        Job.state.not_in((*ACTIVE, "succeeded")),
    )
    found = ctx.db.scalars(select(Job).where(*tried).order_by(Job.created_at.desc()).limit(1)).first()
    return "" if found is None else f"{found.label} {found.state}: {found.error}"


def _is_busy(ctx: Context, project_id: str, job: Job) -> bool:
    """Whether jobs are at work that the deletion began."""
    begun = (Job.project_id == project_id, Job.state.in_(ACTIVE), Job.request_id == job.request_id, Job.id != job.id)
    return ctx.db.scalar(select(Job.id).where(*begun).limit(1)) is not None


def _finish(ctx: Context, claim: Claim, project_id: str) -> None:
    """The end of a project in which nothing is left. Raises NotYet if something was made at the last moment."""
    with transaction(ctx.db):
        job = held(ctx.db, claim)
        project = ctx.db.get_one(Project, project_id, with_for_update=True, populate_existing=True)
        if any(_count(ctx, rtype.model, *_live(rtype, project_id)) for rtype in _contents(ctx)):
            raise NotYet("Something was made at the last moment.")
        subject = project_subject(project)
        gone = [*_end_accounts(ctx, project_id), *_end_policies(ctx, project_id)]
        for model in (QuotaHistory, Quota):
            ctx.db.execute(delete(model).where(model.project_id == project_id))
        quota_requests.withdraw_all(ctx.db, project_id=project_id)
        project.deleted_at, project.boundary_policy_id = now(), None
        project.name = f"{project.name[: NAME_MAX - len(project.id) - 3]} ({project.id})"
        iam.bump(ctx.db)
        if job.user_id is not None and ctx.db.get(User, job.user_id) is not None:
            alert(ctx, job.user_id, Notice(f"Project {subject.name} is deleted", "", "info", "identity.project", project_id))
        audit.record(ctx, f"{DELETE}.succeeded", subject, details={"job_id": job.id, "gone": gone[:ROUND], "gone_count": len(gone)})


def _end_accounts(ctx: Context, project_id: str) -> Iterator[str]:
    """Take everybody out within the caller's transaction, and delete the service accounts; their names."""
    in_project = select(Membership).join(Membership.user).where(Membership.project_id == project_id).order_by(Membership.user_id)
    for member in ctx.db.scalars(in_project).all():
        yield member.user.username
        if member.user.kind == SERVICE:
            remove(ctx, member.user_id, heir_id=None)
        else:
            iam.leave_project(ctx.db, member.user_id, project_id)
    ctx.db.execute(delete(Membership).where(Membership.project_id == project_id))
    ctx.db.execute(update(User).where(User.default_project_id == project_id).values(default_project_id=None))
    ctx.db.execute(update(UserSession).where(UserSession.project_id == project_id).values(project_id=None))


def _end_policies(ctx: Context, project_id: str) -> Iterator[str]:
    """End groups, policies and roles with their sessions within the caller's transaction, whoever holds them; their names."""
    for rtype in (rtype for rtype in _types(ctx) if rtype.model in ACCESS):
        for row in ctx.db.scalars(select(rtype.model).where(*_live(rtype, project_id)).order_by(rtype.model.id)).all():
            held_by = (iam.IamAttachment.principal_id == row.id) | (iam.IamAttachment.policy_id == row.id)
            ctx.db.execute(delete(iam.IamAttachment).where(held_by))
            ctx.db.execute(delete(iam.IamGroupMember).where(iam.IamGroupMember.group_id == row.id))
            ctx.db.execute(delete(ApiToken).where(ApiToken.role_id == row.id))
            end(ctx, row)
            yield row.name


def _tell_failed(ctx: Context, claim: Claim, project: Project, reasons: Iterable[str]) -> None:
    with transaction(ctx.db):
        job = held(ctx.db, claim)
        error = " ".join(reasons)
        if job.user_id is not None and ctx.db.get(User, job.user_id) is not None:
            notice = Notice(f"Project {project.name} is not deleted", error, "warning", "identity.project", project.id, f"/projects/{project.id}")
            alert(ctx, job.user_id, notice)
        audit.record(ctx, f"{DELETE}.failed", project_subject(project), status="failure", error=error, details={"job_id": job.id})


def _types(ctx: Context) -> Sequence[ResourceType]:
    return [rtype for rtype in ctx.registry if rtype.tenancy is not Tenancy.PLATFORM]


def _contents(ctx: Context) -> Sequence[ResourceType]:
    """What the job deletes one by one; what lets people in goes last, so that somebody may look into what does not go."""
    return [rtype for rtype in _types(ctx) if rtype.model not in ACCESS]


def _live(rtype: ResourceType, project_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return rtype.model.project_id == project_id, rtype.model.deleted_at.is_(None)


def _references(rtype: ResourceType) -> set[str]:
    """The types that a type's rows name."""
    return {info.kind.type_key for info in rtype.fields().values() if isinstance(info.kind, Ref)}


def _count(ctx: Context, what: Any, *where: ColumnElement[bool]) -> int:
    return ctx.db.scalar(select(func.count()).select_from(what).where(*where)) or 0
