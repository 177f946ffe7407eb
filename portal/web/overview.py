"""The first page: what there is, what runs, what is short."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from portal.compute.summary import compute_summary
from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel.activity import recent
from portal.kernel.authz import Target, decide
from portal.kernel.limits import quota_lines
from portal.web.page import render

pages = Blueprint("overview", __name__)


@pages.get("/")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """Counts, utilization, what is running now, what happened lately."""
    ctx = context()
    may_see_quota = ctx.project_id is not None and decide(ctx, "core.quota.read", Target(ctx.project_id)).allowed
    lines = quota_lines(ctx, ctx.project_id) if ctx.project_id and may_see_quota else []
    return render("overview/index.html", summary=compute_summary(ctx), lines=lines, activity=recent(ctx, limit=12))
