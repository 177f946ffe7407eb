"""What every page of the console is rendered with, and how forms are answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from flask import Response, flash, g, make_response, redirect, render_template, request
from flask.typing import ResponseReturnValue
from sqlalchemy import select

from portal.http.probes import VERSION
from portal.http.request import SESSION_COOKIE, context, session_cookie_name, signed_in
from portal.identity.models import Project, User
from portal.identity.projects import projects_visible
from portal.kernel.activity import JobsQuery, jobs_page
from portal.kernel.alerts import unread
from portal.kernel.authz import ROLES, Target, decide
from portal.kernel.capabilities import CapabilityStatus, capabilities
from portal.kernel.context import Context
from portal.kernel.errors import PortalError
from portal.kernel.jobs import ACTIVE, Job
from portal.kernel.quota_requests import waiting
from portal.kernel.resource import ResourceType

THEME_COOKIE = "theme"
YEAR_S = 365 * 86_400
THEMES = ("system", "light", "dark")
SERVICE_ICONS = {"compute": "compute", "storage": "storage", "networking": "net", "security": "shield"}
TRAY_SIZE = 6


@dataclass(frozen=True, slots=True)
class Shell:
    """The frame around a page."""

    user: User
    initials: str
    role: str
    project: Project | None
    projects: Sequence[Project]
    navigation: Sequence[tuple[str, str, Sequence[ResourceType]]]
    jobs: Sequence[Job]
    missing: Sequence[CapabilityStatus]
    may_audit: bool
    may_administer: bool
    unread: int
    waiting: int | None
    single_keys: bool
    compact: bool


def shell() -> Shell | None:
    """The frame for whoever is signed in; None for a page without one."""
    found = signed_in()
    if found is None:
        return None
    ctx = context()
    projects = projects_visible(ctx)
    current = next((project for project in projects if project.id == ctx.project_id), None)
    roles = [ROLES[grant.role].label for grant in ctx.principal.grants if grant.role in ROLES and grant.project_id in {None, ctx.project_id}]
    preferences = found.user.preferences
    return Shell(
        found.user, "".join(part[0] for part in found.user.username.replace("-", " ").replace(".", " ").split()[:2]).upper(), ", ".join(dict.fromkeys(roles)),
        current, projects, navigation(), running_jobs(), [row for row in capabilities(ctx.db) if not row.available],
        decide(ctx, "security.audit.read", Target(ctx.project_id)).allowed, decide(ctx, "identity.user.read", Target(None)).allowed,
        *_numbers(ctx),
        bool(preferences.get("single_keys", True)), bool(preferences.get("compact", False)),
    )  # fmt: skip


def _numbers(ctx: Context) -> tuple[int, int | None]:
    """(unread alerts, requests that wait for the user's decision or None): on every page, so asked for in one query."""
    parts = [part for part in (unread(ctx), waiting(ctx)) if part is not None]
    found = ctx.db.execute(select(*parts)).one()
    return found[0], found[1] if len(parts) > 1 else None


def navigation() -> list[tuple[str, str, Sequence[ResourceType]]]:
    """(service, icon, its types) in the order of the registry."""
    types = [rtype for rtype in context().registry if rtype.in_navigation]
    return [(service, SERVICE_ICONS.get(service, "grid"), list(group)) for service, group in groupby(types, key=lambda rtype: rtype.service)]


def running_jobs() -> Sequence[Job]:
    """Jobs of the current project that have not ended, newest first."""
    return jobs_page(context(), JobsQuery(state=",".join(ACTIVE), limit=TRAY_SIZE)).jobs


def render(template: str, status: int = 200, **values: Any) -> Response:
    """A page, or the fragment of it that HTMX asked for."""
    frame = None if is_fragment() else shell()
    theme = request.cookies.get(THEME_COOKIE, "system")
    body = render_template(
        template,
        frame=frame,
        fragment=is_fragment(),
        theme=theme if theme in THEMES else "system",
        version=VERSION,
        request_id=g.get("request_id", ""),
        **values,
    )
    return make_response(body, status)


def is_fragment() -> bool:
    """Whether HTMX asks for a part of a page; a boosted request and one from its history want the whole."""
    headers = request.headers
    return headers.get("HX-Request") == "true" and headers.get("HX-Boosted") != "true" and headers.get("HX-History-Restore-Request") != "true"


def go(url: str, message: str = "", tone: str = "ok") -> ResponseReturnValue:
    """Answer a form that succeeded: on to another page, which shows the message."""
    if message:
        toast(message, tone)
    if is_fragment():
        response = make_response("", 204)
        response.headers["HX-Redirect"] = url
        return response
    return redirect(url, 303)


def toast(message: str, tone: str = "ok") -> None:
    """Say something on the next page that is shown."""
    flash(message, tone)


def with_theme(answer: ResponseReturnValue, wanted: str) -> Response:
    """Keep light, dark or as the system in this browser, along with an answer."""
    response = make_response(answer)
    if wanted in THEMES:
        response.set_cookie(THEME_COOKIE, wanted, max_age=YEAR_S, samesite="Lax", secure=session_cookie_name() == SESSION_COOKIE, httponly=True)
    return response


def field_errors(error: PortalError, known: Sequence[str]) -> tuple[dict[str, list[str]], str]:
    """(errors by field, message for the head of the form): what names a field of the form stands at it, the rest above it."""
    at_fields: dict[str, list[str]] = {}
    for name, texts in error.details.items():
        if name in known and isinstance(texts, list):
            at_fields[name] = [str(text) for text in texts]
    is_all = bool(at_fields) and all(name in at_fields for name in error.details)
    return at_fields, "" if is_all else error.message


def form_status(error: PortalError) -> int:
    """Status of a page that shows a form again: 422 where a field is wrong, else the refusal's own."""
    return 422 if error.status == 400 else error.status  # noqa: PLR2004 - a form that was understood but cannot be accepted
