"""Endpoints of the end of a project."""

from collections.abc import Iterator

from flask.typing import ResponseReturnValue

from portal.api import body as io
from portal.api.core import JOB, show_job
from portal.api.endpoints import Endpoint
from portal.api.schemas import OWNED, TEXT, thing
from portal.http.request import context
from portal.identity.project_deletion import project_delete, project_leaving

TAG = "Projects"


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    gone = {"type": "array", "items": thing(label=TEXT, count={"type": "integer"})}
    leaving = thing(resources={"type": "array", "items": OWNED}, gone=gone, in_the_way={"type": "array", "items": TEXT})
    yield Endpoint("GET", "/projects/{project_id}/deletion", "projects.deletion", deletion, "What the deletion of a project would do, and what is in its way",
                   TAG, {200: leaving}, (403, 404))  # fmt: skip
    yield Endpoint("DELETE", "/projects/{project_id}", "projects.delete", delete, "Delete a project with everything in it, by a job", TAG, {202: JOB},
                   (403, 404, 409))  # fmt: skip


def deletion(project_id: str) -> ResponseReturnValue:
    """Everything that would go."""
    found = project_leaving(context(), project_id)
    resources = [{"label": each.label, "count": each.count, "names": list(each.names)} for each in found.resources]
    gone = [{"label": label, "count": count} for label, count in found.gone]
    return io.answer({"resources": resources, "gone": gone, "in_the_way": list(found.in_the_way)})


def delete(project_id: str) -> ResponseReturnValue:
    """The job that does it."""
    return io.answer(show_job(project_delete(context(), project_id)), 202)
