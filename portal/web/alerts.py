"""Alerts of the signed-in user."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel import alerts
from portal.web.page import go, render

pages = Blueprint("alerts", __name__)
# An icon and a tone for each severity.
LOOKS = {"info": ("info", ""), "warning": ("alert", "warn"), "critical": ("alert", "bad")}


@pages.get("/alerts")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """All of them."""
    return render("alerts/index.html", rows=alerts.alerts(context()), looks=LOOKS)


@pages.post("/alerts/read-all")
@access(Access.SIGNED_IN)
def read_all() -> ResponseReturnValue:
    """Mark all as read."""
    alerts.alert_read_all(context())
    return go("/alerts")


@pages.post("/alerts/<alert_id>/read")
@access(Access.SIGNED_IN)
def read(alert_id: str) -> ResponseReturnValue:
    """Mark one as read and go where it leads."""
    return go(alerts.alert_read(context(), alert_id).url or "/alerts")


@pages.post("/alerts/<alert_id>/dismiss")
@access(Access.SIGNED_IN)
def dismiss(alert_id: str) -> ResponseReturnValue:
    """Remove one."""
    alerts.alert_dismiss(context(), alert_id)
    return go("/alerts")
