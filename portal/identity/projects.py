"""Projects and their members: who works where, and in which role."""

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import joinedload

from portal.identity import iam
from portal.identity.models import PERSON, Membership, Project, User
from portal.kernel import audit, quota
from portal.kernel.authz import ROLES, Target, authorize, decide, reach, refuse_escalation
from portal.kernel.context import Context
from portal.kernel.errors import Conflict, InvalidRequest, NotFound
from portal.kernel.guests import ProjectNetwork
from portal.kernel.ids import is_storable, new_id, storable
from portal.kernel.operations import acting
from portal.kernel.policy import Columns
from portal.kernel.projects import refuse_ending

READ = "identity.project.read"
PROJECT_ROLES = ("project_admin", "developer", "viewer", "auditor")
NAME_MAX = 100
MIN_NAME = 2


def projects_visible(ctx: Context) -> Sequence[Project]:
    """The projects that the caller may see, by name."""
    mine = reach(ctx, READ).where(Columns(Project.id))
    return ctx.db.scalars(select(Project).where(mine, Project.deleted_at.is_(None)).order_by(Project.name)).all()


def project_find(ctx: Context, project_id: str) -> Project:
    """A project that the caller may see. Raises NotFound."""
    may_see = is_storable(project_id) and decide(ctx, READ, Target(project_id)).allowed
    project = ctx.db.get(Project, project_id) if may_see else None
    if project is None or project.deleted_at is not None:
        raise NotFound(f"There is no project {project_id[:80]} here.")
    return project


def project_create(ctx: Context, *, name: str, description: str = "") -> Project:
    """Create a project with the default quotas and, where networks can be made, its default network; whoever creates it administers it."""
    name = _checked_name(name)
    project = Project(id=new_id("prj"), name=name, description=_checked_description(description))
    with acting(ctx, "identity.project.create", project_subject(project), target=Target(None, label=f"a new project {name}"), details={"name": name}):
        _refuse_taken(ctx, project)
        ctx.db.add(project)
        ctx.db.flush()
        for dimension in quota.DIMENSIONS:
            quota.ensure(ctx.db, project.id, dimension)
        if ctx.principal.user_id is not None:
            ctx.db.add(Membership(user_id=ctx.principal.user_id, project_id=project.id, role="project_admin"))
            ctx.db.flush()
        if ctx.registry.networks is not None:
            ctx.registry.networks.begin(ctx, project.id)
    return project


def network_of(ctx: Context, project: Project) -> ProjectNetwork:
    """The default network of a project, or why it has none."""
    if ctx.registry.networks is None:
        return ProjectNetwork(None, "There are no networks in this version of the portal.")
    return ctx.registry.networks.of_project(ctx, project.id)


def project_update(ctx: Context, project_id: str, *, name: str | None = None, description: str | None = None) -> Project:
    """Change a project's name or description. Raises NotFound, Forbidden, InvalidRequest or Conflict."""
    project = project_find(ctx, project_id)
    changes = {}
    if name is not None:
        changes["name"] = _checked_name(name)
    if description is not None:
        changes["description"] = _checked_description(description)
    before = {"name": project.name, "description": project.description}
    with acting(
        ctx, "identity.project.update", project_subject(project), target=project_target(project), details={"before": before, "after": changes}
    ):
        row = project_locked(ctx, project)
        for attribute, value in changes.items():
            setattr(row, attribute, value)
        _refuse_taken(ctx, row)
    return project


def boundary_set(ctx: Context, project_id: str, policy: str) -> Project:
    """Make a policy, by id or name, the permission boundary of a project: what it does not allow nobody does there. Empty takes it away.

    Raises NotFound, Forbidden or InvalidRequest.
    """
    project = project_find(ctx, project_id)
    everywhere = Target(None, label=f"the boundary of project {project.name}")
    with acting(ctx, "identity.project.bound", project_subject(project), target=everywhere, details={"policy": policy[:255]}):
        row = project_locked(ctx, project)
        row.boundary_policy_id = _boundary(ctx, policy, project_id) if policy else None
        iam.bump(ctx.db)
    return project


def _boundary(ctx: Context, policy: str, project_id: str) -> str:
    text = storable(policy[:255])
    mine = or_(iam.IamPolicy.project_id.is_(None), iam.IamPolicy.project_id == project_id)
    named = or_(iam.IamPolicy.id == text, iam.IamPolicy.name == text)
    found = ctx.db.scalars(select(iam.IamPolicy.id).where(named, mine, iam.IamPolicy.deleted_at.is_(None)).limit(2)).all()
    if len(found) != 1:
        why = f"There is no policy {policy[:80]} of this project or the platform." if not found else f"{policy[:80]} names several; use the id."
        raise InvalidRequest.fields({"policy": [why]})
    return found[0]


def members_of(ctx: Context, project_id: str) -> Sequence[Membership]:
    """The people who are members of a project that the caller may see, by name. Raises NotFound."""
    project_find(ctx, project_id)
    query = (
        select(Membership)
        .join(Membership.user)
        .where(Membership.project_id == project_id, User.kind == PERSON)
        .options(joinedload(Membership.user))
        .order_by(User.username)
    )
    return ctx.db.scalars(query).all()


def member_set(ctx: Context, project_id: str, username: str, role: str) -> Membership:
    """Give a user a role in a project, in place of the one they had. Raises InvalidRequest for an unknown user or role."""
    project = project_find(ctx, project_id)
    about = audit.Subject("identity.membership", project.id, username[:255], project.id)
    with acting(ctx, "identity.membership.update", about, target=project_target(project), details={"username": username[:255], "role": role[:64]}):
        # Looked up after the permission was decided: who may not manage members does not learn which users exist.
        authorize(ctx, "identity.membership.update", project_target(project))
        if role not in PROJECT_ROLES:
            raise InvalidRequest.fields({"role": [f"must be one of {', '.join(PROJECT_ROLES)}."]})
        refuse_escalation(ctx, ROLES[role].statements, project.id)
        project_locked(ctx, project)
        user = ctx.db.scalars(select(User).where(User.username == storable(username[:254]), User.kind == PERSON)).first()
        if user is None:
            raise InvalidRequest.fields({"username": [f"There is no user {username[:80]}. An administrator of the platform creates users."]})
        held = ctx.db.get(Membership, (user.id, project.id), populate_existing=True)
        if held is None:
            held = Membership(user_id=user.id, project_id=project.id, role=role)
            ctx.db.add(held)
        else:
            _keep_an_admin(ctx, held, role)
            held.role, held.source = role, ""
        ctx.db.flush()
    return held


def member_remove(ctx: Context, project_id: str, user_id: str) -> None:
    """Take a user out of a project, its groups and its policies; what they own there stays. Raises NotFound, or Conflict for the last administrator."""
    project = project_find(ctx, project_id)
    about = audit.Subject("identity.membership", project.id, user_id[:64], project.id)
    with acting(ctx, "identity.membership.update", about, target=project_target(project), details={"user_id": user_id[:64], "role": None}):
        project_locked(ctx, project)
        held = ctx.db.get(Membership, (storable(user_id), project.id), populate_existing=True)
        if held is None or held.user.kind != PERSON:
            raise NotFound(f"{user_id[:80]} is no member of {project.name}.")
        _keep_an_admin(ctx, held, "")
        ctx.db.delete(held)
        iam.leave_project(ctx.db, user_id, project.id)
        iam.bump(ctx.db)


def project_locked(ctx: Context, project: Project) -> Project:
    """The project's row, locked: of two administrators who demote each other at once, one succeeds. Raises StateConflict if it is being deleted."""
    row = ctx.db.get_one(Project, project.id, with_for_update=True, populate_existing=True)
    refuse_ending(ctx.db, project.id)
    return row


def _keep_an_admin(ctx: Context, held: Membership, role: str) -> None:
    if held.role != "project_admin" or role == "project_admin":
        return
    others = (
        select(User.id)
        .join(Membership, Membership.user_id == User.id)
        .where(Membership.project_id == held.project_id, Membership.role == "project_admin", Membership.user_id != held.user_id)
        .where(User.kind == PERSON, User.is_active.is_(True))
    )
    # Locked, so that none of them is disabled meanwhile.
    if not ctx.db.scalars(others.order_by(User.id).with_for_update(read=True, of=User)).all():
        raise Conflict("This is the project's last administrator. Make somebody else project admin first.")


def project_target(project: Project) -> Target:
    """The project, to decide about."""
    return Target(project.id, label=f"project {project.name}")


def project_subject(project: Project) -> audit.Subject:
    """The project in the audit log."""
    return audit.Subject("identity.project", project.id, project.name, project.id)


def _checked_name(name: str) -> str:
    name = name.strip()
    if not MIN_NAME <= len(name) <= NAME_MAX or not name.isprintable():
        raise InvalidRequest.fields({"name": [f"must have {MIN_NAME} to {NAME_MAX} printable characters; this one has {len(name)}."]})
    return name


def _checked_description(description: str) -> str:
    limit = 2000
    if len(description) > limit or not is_storable(description):
        raise InvalidRequest.fields({"description": [f"must have at most {limit} characters; this one has {len(description)}."]})
    return description


def _refuse_taken(ctx: Context, project: Project) -> None:
    with ctx.db.no_autoflush:
        if ctx.db.scalars(select(Project.id).where(Project.name == project.name, Project.id != project.id)).first() is not None:
            raise Conflict(
                f'name: "{project.name}" is taken by another project. Choose another name.', details={"name": ["is taken by another project"]}
            )


def role_labels() -> dict[str, str]:
    """Role → label, of the roles that a member can hold."""
    return {name: ROLES[name].label for name in PROJECT_ROLES}
