"""The console: adapters from pages and forms to operations, mostly derived from the registry."""

from flask import Flask, redirect, request
from flask.typing import ResponseReturnValue

from portal.http.request import Unfinished, unfinished
from portal.http.security import guess_limit
from portal.web import (
    account,
    alerts,
    applications,
    audit,
    auth,
    bucket_pages,
    bucket_settings,
    compute_pages,
    consoles,
    engine_pages,
    factors,
    filters,
    jobs,
    networking_pages,
    oauth2,
    object_actions,
    object_pages,
    overview,
    projects,
    quota_requests,
    quotas,
    reference,
    resource_lists,
    resource_pages,
    roles,
    rule_editor,
    search,
    security_pages,
    service_accounts,
    sso,
    users,
)
from portal.web.errors import render_error

__all__ = ["install", "render_error"]

ALWAYS_OPEN = frozenset({"auth.logout", "auth.theme", "sso.away", "sso.back", "sso.logged_out", "static"})
# Pages at which passwords, codes and links can be tried.
GUESSED_AT = ("auth.sign_in_now", "auth.second_factor", "auth.passkey_enter", "auth.confirm_now", "users.invitation_accept")
CONFIRMING = {"auth.confirm_form", "auth.confirm_now"}
WHERE = {Unfinished.NEW_PASSWORD: "/account/password", Unfinished.ENROL: "/account/factors", Unfinished.FACTOR: "/confirm"}
OPEN_FOR = {
    Unfinished.NEW_PASSWORD: {"account.password"},
    Unfinished.ENROL: {
        *CONFIRMING, "factors.index", "factors.totp_begin", "factors.totp", "factors.totp_confirm", "factors.passkey", "factors.passkey_create"
    },
    Unfinished.FACTOR: CONFIRMING,
}  # fmt: skip


def install(app: Flask) -> None:
    """Register the pages."""
    filters.install(app)
    for module in (
        auth,
        overview,
        jobs,
        audit,
        quota_requests,
        quotas,
        alerts,
        account,
        factors,
        projects,
        sso,
        users,
        search,
        reference,
        compute_pages,
        networking_pages,
        rule_editor,
        object_pages,
        object_actions,
        engine_pages,
        bucket_pages,
        bucket_settings,
        security_pages,
        roles,
        service_accounts,
        applications,
        resource_lists,
        resource_pages,
    ):
        app.register_blueprint(module.pages)
    tries = guess_limit(app)
    for endpoint in GUESSED_AT:
        app.view_functions[endpoint] = tries(app.view_functions[endpoint])
    consoles.install(app)
    oauth2.install(app)
    app.before_request(_first_things_first)


def _first_things_first() -> ResponseReturnValue | None:
    """Whoever got a password from an administrator, or has yet to show a second factor, does that before anything else."""
    if request.endpoint is None or request.path.startswith("/api") or request.blueprint == "probes":
        return None
    todo = unfinished()
    if todo is None or request.endpoint in ALWAYS_OPEN or request.endpoint in OPEN_FOR[todo]:
        return None
    return redirect(WHERE[todo], 303)
