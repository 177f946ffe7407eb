"""Projects and their members."""

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.identity import projects
from portal.identity.project_deletion import DELETE, project_delete, project_leaving
from portal.identity.service_accounts import READ, service_accounts_of
from portal.kernel.authz import Target, decide
from portal.kernel.errors import Conflict, InvalidRequest, PortalError
from portal.web.forms import check_named
from portal.web.page import field_errors, form_status, go, render

pages = Blueprint("projects", __name__)


@pages.get("/projects")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """Projects that the user may see."""
    return _list(200)


@pages.post("/projects")
@access(Access.SIGNED_IN)
def create() -> ResponseReturnValue:
    """A new project."""
    name, description = request.form.get("name", ""), request.form.get("description", "")
    try:
        made = projects.project_create(context(), name=name, description=description)
    except (InvalidRequest, Conflict) as error:
        return _list(form_status(error), error=error, typed={"name": name, "description": description})
    network = projects.network_of(context(), made)
    without = "" if network.vpc_id else f" It has no network yet: {network.reason}"
    return go(f"/projects/{made.id}", f"Project {made.name} is created.{without}")


@pages.get("/projects/<project_id>")
@access(Access.SIGNED_IN)
def show(project_id: str) -> ResponseReturnValue:
    """One project with its members."""
    return _one(project_id, 200)


@pages.post("/projects/<project_id>")
@access(Access.SIGNED_IN)
def change(project_id: str) -> ResponseReturnValue:
    """Name and description."""
    form = request.form
    try:
        projects.project_update(context(), project_id, name=form.get("name"), description=form.get("description"))
    except (InvalidRequest, Conflict) as error:
        return _one(project_id, form_status(error), error=error, typed=dict(form))
    return go(f"/projects/{project_id}", "Saved.")


@pages.route("/projects/<project_id>/delete", methods=["GET", "POST"])
@access(Access.SIGNED_IN)
def remove(project_id: str) -> ResponseReturnValue:
    """What would go with a project, and the end of it."""
    ctx = context()
    project, leaving = projects.project_find(ctx, project_id), project_leaving(ctx, project_id)
    errors, message, status = dict[str, list[str]](), "", 200
    if request.method == "POST":
        try:
            check_named(project.name)
            job = project_delete(ctx, project_id)
        except (InvalidRequest, Conflict) as error:
            errors, message = field_errors(error, ("confirm",))
            status = form_status(error)
        else:
            return go(f"/jobs/{job.id}", f"{project.name} is being deleted.")
    return render("projects/delete.html", status, project=project, leaving=leaving, errors=errors, message=message)


@pages.post("/projects/<project_id>/boundary")
@access(Access.SIGNED_IN)
def set_boundary(project_id: str) -> ResponseReturnValue:
    """Set or take away the permission boundary."""
    policy = request.form.get("policy", "").strip()
    try:
        projects.boundary_set(context(), project_id, policy)
    except (InvalidRequest, Conflict) as error:
        return _one(project_id, form_status(error), error=error, typed={"policy": policy})
    return go(f"/projects/{project_id}", "The permission boundary is set." if policy else "The project has no permission boundary.")


@pages.post("/projects/<project_id>/members")
@access(Access.SIGNED_IN)
def set_member(project_id: str) -> ResponseReturnValue:
    """Add a member or change their role."""
    username, role = request.form.get("username", "").strip(), request.form.get("role", "")
    try:
        projects.member_set(context(), project_id, username, role)
    except (InvalidRequest, Conflict) as error:
        return _one(project_id, form_status(error), error=error, typed={"username": username, "role": role})
    return go(f"/projects/{project_id}", f"{username} is {projects.role_labels()[role].lower()} now.")


@pages.post("/projects/<project_id>/members/<user_id>/remove")
@access(Access.SIGNED_IN)
def remove_member(project_id: str, user_id: str) -> ResponseReturnValue:
    """Take a member out."""
    try:
        projects.member_remove(context(), project_id, user_id)
    except Conflict as error:
        return _one(project_id, form_status(error), error=error)
    return go(f"/projects/{project_id}", "The member is removed.")


def _list(status: int, *, error: PortalError | None = None, typed: dict[str, str] | None = None) -> ResponseReturnValue:
    ctx = context()
    errors, message = field_errors(error, ("name", "description")) if error else ({}, "")
    may_create = decide(ctx, "identity.project.create", Target(None)).allowed
    rows = projects.projects_visible(ctx)
    return render("projects/index.html", status, rows=rows, errors=errors, message=message, typed=typed or {}, may_create=may_create)


def _one(project_id: str, status: int, *, error: PortalError | None = None, typed: dict[str, str] | None = None) -> ResponseReturnValue:
    ctx = context()
    project, members = projects.project_find(ctx, project_id), projects.members_of(ctx, project_id)
    errors, message = field_errors(error, ("name", "description", "username", "role", "policy")) if error else ({}, "")
    may_change = decide(ctx, "identity.project.update", Target(project_id)).allowed
    accounts = service_accounts_of(ctx, project_id) if decide(ctx, READ, Target(project_id)).allowed else []
    return render(
        "projects/show.html", status, project=project, members=members, accounts=accounts, errors=errors, message=message, typed=typed or {}, may_change=may_change,
        roles=projects.role_labels(), may_bound=decide(ctx, "identity.project.bound", Target(None)).allowed,
        may_delete=decide(ctx, DELETE, Target(project_id)).allowed, network=projects.network_of(ctx, project),
    )  # fmt: skip
