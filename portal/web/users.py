"""Users, for administrators of the platform."""

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.identity import factors, users
from portal.kernel.authz import ROLES
from portal.kernel.errors import Conflict, InvalidRequest, PortalError
from portal.web.page import field_errors, form_status, go, render

pages = Blueprint("users", __name__)
FIELDS = ("username", "email", "password", "platform_role")
LABELS = {name: ROLES[name].label if name else "None" for name in users.PLATFORM_ROLES}


@pages.get("/users")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """All users."""
    return _page(200)


@pages.post("/users")
@access(Access.SIGNED_IN)
def create() -> ResponseReturnValue:
    """A new user."""
    given = {name: request.form.get(name, "") for name in FIELDS}
    try:
        made = users.user_create(
            context(),
            username=given["username"].strip(),
            email=given["email"].strip(),
            password=given["password"],
            platform_role=given["platform_role"],
        )
    except (InvalidRequest, Conflict) as error:
        return _page(form_status(error), error=error, typed=given)
    return go("/users", f"{made.username} is created. They choose a password of their own at the first sign-in.")


@pages.post("/users/<user_id>")
@access(Access.SIGNED_IN)
def change(user_id: str) -> ResponseReturnValue:
    """Disable, enable, or change the role."""
    form = request.form
    active = None if "is_active" not in form else form["is_active"] == "true"
    try:
        changed = users.user_update(context(), user_id, is_active=active, platform_role=form.get("platform_role"))
    except (InvalidRequest, Conflict) as error:
        return _page(form_status(error), error=error)
    return go("/users", f"{changed.username}: saved.")


@pages.post("/users/<user_id>/factors/reset")
@access(Access.SIGNED_IN)
def factors_reset(user_id: str) -> ResponseReturnValue:
    """Forget the apps, passkeys and recovery codes of a user who lost them."""
    user = users.user_find(context(), user_id)
    factors.factors_reset(context(), user)
    return go("/users", f"{user.username} has no second factor any more and is signed out everywhere.")


def _page(status: int, *, error: PortalError | None = None, typed: dict[str, str] | None = None) -> ResponseReturnValue:
    errors, message = field_errors(error, FIELDS) if error else ({}, "")
    shown = {name: value for name, value in (typed or {}).items() if name != "password"}
    return render(
        "users/index.html",
        status,
        rows=users.users_list(context()),
        with_factors=factors.users_with_factors(context().db),
        errors=errors,
        message=message,
        typed=shown,
        labels=LABELS,
    )
