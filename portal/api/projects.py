"""Endpoints of projects and their members."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from flask.typing import ResponseReturnValue
from pydantic import Field

from portal.api import body as io
from portal.api.core import JOB, show_job
from portal.api.endpoints import PREFIX, Endpoint
from portal.api.resources import list_schema, only
from portal.api.schemas import LISTED, TEXT, WHEN, Input, read, thing
from portal.http.request import context
from portal.identity import projects
from portal.identity.models import Membership, Project
from portal.identity.project_deletion import project_delete, project_leaving
from portal.kernel.fields import ONE_LINE

PROJECT = thing(project_id=TEXT, id=TEXT, name=TEXT, description=TEXT, boundary_policy_id={"type": ["string", "null"]}, created_at=WHEN)
WITH_NETWORK = {**PROJECT, "properties": {**PROJECT["properties"], "default_vpc_id": {"type": ["string", "null"]}, "network_reason": TEXT}}
MEMBER = thing(user_id=TEXT, username=TEXT, role=TEXT, created_at=WHEN)


class Boundary(Input):
    """The permission boundary of a project."""

    policy: str | None = Field(None, max_length=255, pattern=ONE_LINE, description="Name or id; nothing takes the boundary away.")


class ProjectInput(Input):
    """A project."""

    name: str = Field(max_length=255)
    description: str = Field("", max_length=2000)


class ProjectChange(Input):
    """What may be changed of a project."""

    name: str | None = Field(None, max_length=255)
    description: str | None = Field(None, max_length=2000)


class MemberInput(Input):
    """A user's role in a project."""

    username: str = Field(min_length=1, max_length=254)
    role: str = Field(json_schema_extra={"enum": list(projects.PROJECT_ROLES)})


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    tag = "Projects"
    yield Endpoint("GET", "/projects", "projects.list", project_list, "Projects that I may see", tag, {200: list_schema(PROJECT)})
    yield Endpoint(
        "POST",
        "/projects",
        "projects.create",
        project_create,
        "Create a project",
        tag,
        {201: WITH_NETWORK},
        (403, 409),
        body=ProjectInput.model_json_schema(),
    )
    yield Endpoint("GET", "/projects/{project_id}", "projects.get", project, "One project", tag, {200: WITH_NETWORK}, (404,))
    yield Endpoint("PATCH", "/projects/{project_id}", "projects.patch", project_change, "Change name or description", tag, {200: PROJECT}, (403, 404, 409),
                   body=ProjectChange.model_json_schema())  # fmt: skip
    yield Endpoint("PUT", "/projects/{project_id}/boundary", "projects.boundary", project_boundary,
                   "Make a policy the project's permission boundary, or take it away", tag, {200: PROJECT}, (403, 404, 409),
                   body=Boundary.model_json_schema())  # fmt: skip
    yield Endpoint(
        "GET", "/projects/{project_id}/members", "projects.members", members, "Members of a project", tag, {200: list_schema(MEMBER)}, (404,)
    )
    yield Endpoint("POST", "/projects/{project_id}/members", "projects.members.set", member_set, "Give a user a role, in place of the one they had", tag,
                   {200: MEMBER}, (403, 404, 409), body=MemberInput.model_json_schema())  # fmt: skip
    yield Endpoint("DELETE", "/projects/{project_id}/members/{user_id}", "projects.members.delete", member_delete, "Take a user out of a project", tag,
                   {204: None}, (403, 404, 409))  # fmt: skip
    leaving = thing(resources=LISTED, gone=LISTED, in_the_way={"type": "array", "items": TEXT})
    yield Endpoint("GET", "/projects/{project_id}/deletion", "projects.deletion", deletion, "What the deletion of a project would do, and what is in its way",
                   tag, {200: leaving}, (403, 404))  # fmt: skip
    yield Endpoint("DELETE", "/projects/{project_id}", "projects.delete", project_remove, "Delete a project with everything in it, by a job", tag, {202: JOB},
                   (403, 404, 409))  # fmt: skip


def project_list() -> ResponseReturnValue:
    """Projects."""
    only()
    rows = projects.projects_visible(context())
    return io.answer(io.page_of([show_project(row) for row in rows], count=len(rows)))


def project_create() -> ResponseReturnValue:
    """A new project."""
    given: ProjectInput = read(ProjectInput)
    row = projects.project_create(context(), name=given.name, description=given.description)
    return io.answer(_with_network(row), 201, headers={"Location": f"{PREFIX}/projects/{row.id}"})


def project(project_id: str) -> ResponseReturnValue:
    """One project."""
    return io.answer(_with_network(projects.project_find(context(), project_id)))


def project_change(project_id: str) -> ResponseReturnValue:
    """Change it."""
    given: ProjectChange = read(ProjectChange)
    return io.answer(show_project(projects.project_update(context(), project_id, name=given.name, description=given.description)))


def project_boundary(project_id: str) -> ResponseReturnValue:
    """Its permission boundary."""
    given: Boundary = read(Boundary)
    return io.answer(show_project(projects.boundary_set(context(), project_id, given.policy or "")))


def members(project_id: str) -> ResponseReturnValue:
    """Its members."""
    only()
    rows = projects.members_of(context(), project_id)
    return io.answer(io.page_of([_show_member(row) for row in rows], count=len(rows)))


def member_set(project_id: str) -> ResponseReturnValue:
    """Add or change one."""
    given: MemberInput = read(MemberInput)
    return io.answer(_show_member(projects.member_set(context(), project_id, given.username, given.role)))


def member_delete(project_id: str, user_id: str) -> ResponseReturnValue:
    """Take one out."""
    projects.member_remove(context(), project_id, user_id)
    return io.empty()


def show_project(row: Project) -> dict[str, Any]:
    """A project."""
    return {
        "project_id": row.id, "id": row.id, "name": row.name, "description": row.description,
        "boundary_policy_id": row.boundary_policy_id, "created_at": io.moment(row.created_at),
    }  # fmt: skip


def _with_network(row: Project) -> dict[str, Any]:
    """A project, and its default network or why it has none."""
    network = projects.network_of(context(), row)
    return {**show_project(row), "default_vpc_id": network.vpc_id, "network_reason": network.reason}


def _show_member(row: Membership) -> dict[str, Any]:
    return {"user_id": row.user_id, "username": row.user.username, "role": row.role, "created_at": io.moment(row.created_at)}


def deletion(project_id: str) -> ResponseReturnValue:
    """Everything that would go."""
    found = project_leaving(context(), project_id)
    return io.answer(
        {"resources": [asdict(each) for each in found.resources], "gone": [asdict(each) for each in found.gone], "in_the_way": list(found.in_the_way)}
    )


def project_remove(project_id: str) -> ResponseReturnValue:
    """The job that does it."""
    return io.answer(show_job(project_delete(context(), project_id)), 202)
