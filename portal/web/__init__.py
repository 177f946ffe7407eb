"""The console: adapters from pages and forms to operations, mostly derived from the registry."""

from flask import Flask, redirect, request
from flask.typing import ResponseReturnValue

from portal.http.request import signed_in
from portal.web import (
    account,
    alerts,
    audit,
    auth,
    compute_pages,
    consoles,
    filters,
    jobs,
    overview,
    projects,
    quota_requests,
    quotas,
    reference,
    resource_lists,
    resource_pages,
    search,
    security_pages,
    users,
)
from portal.web.errors import render_error

__all__ = ["install", "render_error"]

WITH_OLD_PASSWORD = frozenset({"account.password", "auth.logout", "auth.theme", "static"})


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
        projects,
        users,
        search,
        reference,
        compute_pages,
        security_pages,
        resource_lists,
        resource_pages,
    ):
        app.register_blueprint(module.pages)
    consoles.install(app)
    app.before_request(_new_password_first)


def _new_password_first() -> ResponseReturnValue | None:
    """Whoever got a password from an administrator chooses their own before anything else."""
    if request.endpoint is None or request.path.startswith("/api") or request.endpoint in WITH_OLD_PASSWORD or request.blueprint == "probes":
        return None
    found = signed_in()
    if found is not None and found.session is not None and found.user.must_change_password:
        return redirect("/account/password", 303)
    return None
