"""Users, for administrators of the platform."""

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context, own_origin
from portal.identity import deletion, factors, iam, invitations, sso, users
from portal.kernel.authz import ROLES
from portal.kernel.errors import Conflict, InvalidRequest, PortalError, QuotaExceeded, Unauthorized
from portal.web.entry import after
from portal.web.forms import check_named
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
    if not given["password"]:
        return _invitation(made.id)
    return go("/users", f"{made.username} is created. They choose a password of their own at the first sign-in.")


@pages.get("/users/<user_id>")
@access(Access.SIGNED_IN)
def show(user_id: str) -> ResponseReturnValue:
    """One user: what they are, what they hold, where they are signed in."""
    return _user_page(user_id, 200)


@pages.post("/users/<user_id>/invite")
@access(Access.SIGNED_IN)
def invite(user_id: str) -> ResponseReturnValue:
    """A link by which the user chooses a password."""
    try:
        return _invitation(user_id)
    except Conflict as error:
        return _user_page(user_id, form_status(error), message=error.message)


@pages.route("/users/<user_id>/delete", methods=["GET", "POST"])
@access(Access.SIGNED_IN)
def remove(user_id: str) -> ResponseReturnValue:
    """What would go with a user, and the end of it."""
    ctx = context()
    user, leaving = users.user_find(ctx, user_id), deletion.user_leaving(ctx, user_id)
    heir = request.form.get("heir", ctx.principal.username).strip()[:150]
    errors, message, status = dict[str, list[str]](), "", 200
    if request.method == "POST":
        try:
            check_named(user.username)
            deletion.user_delete(ctx, user_id, heir)
        except (InvalidRequest, Conflict, QuotaExceeded) as error:
            errors, message = field_errors(error, ("heir", "confirm"))
            status = form_status(error)
        else:
            return go("/users", f"{user.username} is deleted.")
    return render("users/delete.html", status, user=user, leaving=leaving, heir=heir, errors=errors, message=message)


@pages.post("/users/<user_id>/sign-out")
@access(Access.SIGNED_IN)
def sign_out(user_id: str) -> ResponseReturnValue:
    """End every session."""
    ended = users.user_sign_out(context(), user_id)
    return go(f"/users/{user_id}", f"{ended} {'session has' if ended == 1 else 'sessions have'} ended.")


@pages.get("/invite")
@access(Access.PUBLIC)
def invitation() -> ResponseReturnValue:
    """The form for whoever was invited; the code stands behind the #, which browsers do not send."""
    return render("auth/invitation.html", errors={}, message="", code="")


@pages.post("/invite")
@access(Access.PUBLIC)
def invitation_accept() -> ResponseReturnValue:
    """Choose a password."""
    form = request.form
    code = form.get("code", "").strip()[:100]
    try:
        if form.get("new", "") != form.get("again", ""):
            raise InvalidRequest.fields({"again": ["is not the same as the new password."]})
        step = invitations.invitation_accept(context(), code, form.get("new", ""))
    except (InvalidRequest, Unauthorized) as error:
        errors, message = field_errors(error, ("new", "again"))
        return render("auth/invitation.html", form_status(error), errors=errors, message=message, code=code)
    return after(step, "/", ())


def _invitation(user_id: str) -> ResponseReturnValue:
    ctx, origin = context(), own_origin()
    code = invitations.user_invite(ctx, user_id)
    return render("users/invited.html", 201, user=users.user_find(ctx, user_id), link=f"{origin}/invite#{code}")


def _user_page(user_id: str, status: int, *, message: str = "") -> ResponseReturnValue:
    ctx = context()
    user = users.user_find(ctx, user_id)
    return render(
        "users/show.html", status, user=user, message=message, labels=LABELS, roles=ROLES, sessions=users.sessions_of_user(ctx, user_id),
        tokens=users.tokens_of_user(ctx, user_id), devices=factors.devices_of(ctx.db, user.id), held=iam.grants_of(ctx.db, user.id),
        identities=sso.identities_of(ctx, user.id),
    )  # fmt: skip


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
    return go(f"/users/{user_id}", f"{changed.username}: saved.")


@pages.post("/users/<user_id>/factors/reset")
@access(Access.SIGNED_IN)
def factors_reset(user_id: str) -> ResponseReturnValue:
    """Forget the apps, passkeys and recovery codes of a user who lost them."""
    user = users.user_find(context(), user_id)
    factors.factors_reset(context(), user)
    return go(f"/users/{user_id}", f"{user.username} has no second factor any more and is signed out everywhere.")


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
