"""Quotas of the current project; administrators of the platform change them."""

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel.authz import Target, decide
from portal.kernel.errors import InvalidRequest, PortalError
from portal.kernel.limits import quota_lines, quota_update
from portal.web.page import form_status, go, render

pages = Blueprint("quotas", __name__)


@pages.get("/quotas")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """Limits and use."""
    return _page(200)


@pages.post("/quotas/<dimension>")
@access(Access.SIGNED_IN)
def change(dimension: str) -> ResponseReturnValue:
    """Set one limit."""
    text = request.form.get("limit", "").strip()
    try:
        if not text.isascii() or not text.isdigit() or len(text) > 16:  # noqa: PLR2004 - below 2^53
            raise InvalidRequest.fields({"limit": ["must be a whole number, 0 or more."]})
        line = quota_update(context(), _project(), dimension, int(text))
    except InvalidRequest as error:
        return _page(form_status(error), dimension=dimension, typed=text[:20], error=error)
    return go("/quotas", f"{line.label}: the limit is {line.limit:,} now.")


def _project() -> str:
    project_id = context().project_id
    if project_id is None:
        raise InvalidRequest("You are a member of no project yet. An administrator can add you to one.")
    return project_id


def _page(status: int, *, dimension: str = "", typed: str = "", error: PortalError | None = None) -> ResponseReturnValue:
    ctx = context()
    may_change = decide(ctx, "core.quota.update", Target(ctx.project_id)).allowed
    return render(
        "quotas/index.html", status, lines=quota_lines(ctx, _project()), may_change=may_change, dimension=dimension, typed=typed, error=error
    )
