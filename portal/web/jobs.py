"""Background work: list, one job with its steps, retry, cancel, and the tray in the bar."""

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel import control
from portal.kernel.activity import JobsQuery, jobs_page
from portal.kernel.jobs import ACTIVE, ENDED, Job
from portal.web.page import go, render, running_jobs

pages = Blueprint("jobs", __name__)
LIMIT = 25


@pages.get("/jobs")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """A page of jobs."""
    state, search = request.args.get("state", ""), request.args.get("search", "")[:100]
    page = jobs_page(context(), JobsQuery(state=state, search=search, cursor=request.args.get("cursor", ""), limit=LIMIT))
    return render("jobs/index.html", page=page, state=state, search=search, states=[*ACTIVE, *ENDED])


@pages.get("/jobs/<job_id>")
@access(Access.SIGNED_IN)
def show(job_id: str) -> ResponseReturnValue:
    """One job."""
    job = control.find_job(context(), job_id)
    left = control.left_of(context(), job)
    return render("jobs/show.html", job=job, can_cancel=_can_cancel(job), can_retry=_can_retry(job), left=left, resource_url=resource_url(job))


@pages.post("/jobs/<job_id>/cancel")
@access(Access.SIGNED_IN)
def cancel(job_id: str) -> ResponseReturnValue:
    """Ask it to stop."""
    job = control.job_cancel(context(), job_id)
    return go(f"/jobs/{job.id}", f"{job.label}: cancelling.")


@pages.post("/jobs/<job_id>/retry")
@access(Access.SIGNED_IN)
def retry(job_id: str) -> ResponseReturnValue:
    """Queue it again."""
    job = control.job_retry(context(), job_id)
    return go(f"/jobs/{job.id}", f"{job.label}: queued again.")


@pages.get("/tray")
@access(Access.SIGNED_IN)
def tray() -> ResponseReturnValue:
    """What the bar shows of running jobs."""
    return render("jobs/tray.html", jobs=running_jobs())


def _can_cancel(job: Job) -> bool:
    return job.state in ACTIVE and not job.cancel_requested and control.is_cancellable(context(), job)


def _can_retry(job: Job) -> bool:
    """What is no operation on a resource, such as an export, is asked for anew instead."""
    return job.state in {"failed", "dead"} and job.kind in context().registry.operations()


def resource_url(job: Job) -> str:
    """Where the job's resource is shown; empty if its type has no page."""
    rtype = context().registry.get(job.resource_type)
    return f"/{rtype.service}/{rtype.collection}/{job.resource_id}" if rtype else ""
