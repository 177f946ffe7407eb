"""Pages of one row of every resource type: form, detail, actions. A new type needs nothing here.

`templates/<service>/<type>/<page>.html` is used instead of `templates/resource/<page>.html` where it exists.
"""

import json
import shlex
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import MultiDict

from portal.http.guard import Access, access
from portal.http.request import context
from portal.identity.models import User
from portal.identity.projects import project_find
from portal.kernel.activity import activity_of
from portal.kernel.authz import Target, decide, target_of
from portal.kernel.context import Context
from portal.kernel.declare import Effect, Operation, Outcome
from portal.kernel.errors import ConfirmationRequired, InvalidRequest, NotFound, PortalError
from portal.kernel.estimate import estimate_create
from portal.kernel.fields import Int, Number, Ref
from portal.kernel.leaving import leaving_of
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.kernel.resource import ResourceType
from portal.kernel.wording import within
from portal.web import compute_pages, key_pages, networking_pages, roles, security_pages, storage_pages
from portal.web.consequences import consequences_of
from portal.web.derived import Tab, actions_of, base_of, cells, create_action, template, type_of
from portal.web.forms import OperationForm
from portal.web.page import field_errors, form_status, go, is_fragment, render

pages = Blueprint("resources", __name__)
# The button of a form that looks at it without submitting it.
CHECK = "check"
TABS = {**compute_pages.TABS, **networking_pages.TABS, **storage_pages.TABS, **security_pages.TABS, **roles.TABS, **key_pages.TABS}
TABS["compute.instance"] = (*compute_pages.TABS["compute.instance"], networking_pages.OF_INSTANCE, storage_pages.OF_INSTANCE)


def _create_op(rtype: ResourceType) -> Operation:
    op = next((op for op in rtype.operations if op.effect is Effect.CREATE and not op.internal), None)
    if op is None:
        raise NotFound("There is nothing at this address.")
    return op


@pages.route("/<service>/<collection>/new", methods=["GET", "POST"])
@access(Access.SIGNED_IN)
def create(service: str, collection: str) -> ResponseReturnValue:
    """The form for a new row."""
    ctx, rtype = context(), type_of(service, collection)
    op = _create_op(rtype)
    if request.method == "GET":
        chosen = {name: request.args.getlist(name) for name in op.params if name in request.args}
        untouched = OperationForm(ctx, op)
        form = OperationForm(ctx, op, typed=MultiDict({**untouched.typed(), **chosen})) if chosen else untouched
        return _form_page(ctx, rtype, op, form, status=200)
    form = OperationForm(ctx, op, typed=request.form)
    if CHECK in request.form:
        return _form_page(ctx, rtype, op, form, status=200)
    try:
        outcome = _submit(ctx, op, None, form)
    except ConfirmationRequired:
        raise
    except PortalError as error:
        return _refused(ctx, rtype, op, form, error)
    if outcome.once:
        return _shown_once(rtype, outcome)
    if len(outcome.rows) > 1:
        return go(base_of(rtype), f"{len(outcome.rows)} {within(rtype.plural)} are being created.")
    return go(f"{base_of(rtype)}/{outcome.row.id}", f"{rtype.label} {outcome.row.name} is {'being ' if outcome.jobs else ''}created.")


def _submit(ctx: Context, op: Operation, target: str | None, form: OperationForm) -> Outcome:
    key = request.form.get("idempotency_key", "")[:255]
    version = request.form.get("version", "")
    expected = int(version) if version.isascii() and version.isdigit() and len(version) < 12 else None  # noqa: PLR2004 - versions are small
    return run(replace(ctx, idempotency_key=key), op, target, form.data(), expected_version=expected, strict=False)


def _refused(ctx: Context, rtype: ResourceType, op: Operation, form: OperationForm, error: PortalError, *, row: Any = None) -> ResponseReturnValue:
    ctx.db.rollback()
    form.errors, form.message = field_errors(error, list(form.widgets))
    form.request_url = str(error.details.get("request_url", ""))
    return _form_page(ctx, rtype, op, form, status=form_status(error), row=row)


def _form_page(ctx: Context, rtype: ResourceType, op: Operation, form: OperationForm, *, status: int, row: Any = None) -> ResponseReturnValue:
    is_create = op.effect is Effect.CREATE
    base = base_of(rtype)
    action = create_action(ctx, rtype) if is_create else None
    values: dict[str, Any] = {
        "rtype": rtype, "base": base, "op": op, "form": form, "row": row, "key": request.form.get("idempotency_key") or str(uuid.uuid4()),
        "denied": action.reason if action else "", "back": _back(rtype),
        "action": f"{base}/new" if is_create else f"{base}/{row.id}/actions/{op.verb}", "row_version": request.form.get("version") or (row.version if row else ""),
    }  # fmt: skip
    if is_create:
        values |= _effects(ctx, rtype, op, form)
    elif not op.partial:
        values["consequences"] = consequences_of(ctx, ctx.registry.name_of(op), row)
    if op.effect is Effect.REMOVE and rtype.leaving is not None and decide(ctx, ctx.registry.name_of(op), target_of(row)).allowed:
        values["leaving"] = leaving_of(ctx, rtype, row)
    if "document" in form.widgets:
        # While it is typed the page asks by itself; without scripts there is a button.
        policy_id = row.id if row else ""
        values["check_url"] = f"/security/policies/check?policy={policy_id}"
        values["review"] = security_pages.review_of(ctx, request.form["document"], policy_id) if "document" in request.form else None
    page = "form.html" if is_create or op.partial else "dialog.html"
    if is_fragment() and request.method == "POST":
        page = f"_{page}"
    return render(template(rtype, page), status, **values)


def _back(rtype: ResourceType) -> str:
    """Where on the row's page the action was asked for, so that it ends there; empty for the overview."""
    asked = request.values.get("tab", "")
    return f"/{asked}" if any(asked == tab.name for tab in TABS.get(rtype.key, ())) else ""


@pages.post("/<service>/<collection>/estimate")
@access(Access.SIGNED_IN)
def estimate(service: str, collection: str) -> ResponseReturnValue:
    """What the form as it is now would take, and the request that it would send."""
    ctx, rtype = context(), type_of(service, collection)
    op = _create_op(rtype)
    form = OperationForm(ctx, op, typed=request.form)
    return render("resource/summary.html", rtype=rtype, base=base_of(rtype), op=op, form=form, **_effects(ctx, rtype, op, form))


def _effects(ctx: Context, rtype: ResourceType, op: Operation, form: OperationForm) -> dict[str, Any]:
    try:
        data = form.data()
    except InvalidRequest as error:
        return {"estimate": None, "problem": error.message, "curl": "", "missing": []}
    missing = [str(field.label.text) for field, widget in form.fields(quiet=False) if widget.is_required and not data.get(field.name)]
    typed = {name: _typed(op, name, value) for name, value in data.items()}
    body = {name: value for name, value in typed.items() if value not in ("", None, {}) and value != op.params[name].default}
    if missing or not decide(ctx, f"{rtype.key}.{op.verb}", Target(ctx.project_id, ctx.principal.user_id)).allowed:
        return {"estimate": None, "problem": "", "curl": curl(rtype, body), "missing": missing}
    found = estimate_create(ctx, op, data, strict=False)
    return {"estimate": found, "problem": found.problem.message if found.problem else "", "curl": curl(rtype, body), "missing": []}


def _typed(op: Operation, name: str, value: Any) -> Any:
    """Text from a number field as the number that JSON wants."""
    kind = op.params[name].info.kind
    try:
        return int(value) if isinstance(kind, Int) else float(value) if isinstance(kind, Number) else value
    except (TypeError, ValueError):
        return value


def curl(rtype: ResourceType, body: Mapping[str, Any]) -> str:
    """The request as a command; what users typed is quoted for the shell."""
    url = f"{request.host_url.rstrip('/')}/api/v1/{rtype.service}/{rtype.collection}"
    text = json.dumps(body, indent=2, ensure_ascii=False)
    return "\n".join((
        f"curl -X POST {shlex.quote(url)} \\", '  -H "Authorization: Token $TOKEN" \\', "  -H 'Content-Type: application/json' \\", f"  -d {shlex.quote(text)}",
    ))  # fmt: skip


def _shown_once(rtype: ResourceType, outcome: Outcome) -> ResponseReturnValue:
    response = render("resource/once.html", 201, rtype=rtype, base=base_of(rtype), row=outcome.row, once=outcome.once)
    if is_fragment():
        response.headers["HX-Retarget"], response.headers["HX-Reswap"] = "#main", "innerHTML"
    return response


def tabs_of(ctx: Context, rtype: ResourceType, row: Any) -> list[Tab]:
    """Tabs of a row's page that the user may see."""
    own = [tab for tab in TABS.get(rtype.key, ()) if not tab.needs or decide(ctx, tab.needs, target_of(row)).allowed]
    first = [] if any(tab.name == "overview" for tab in own) else [Tab("overview", "Overview", "overview.html")]
    return [*first, *own, Tab("activity", "Activity", "activity.html")]


@pages.get("/<service>/<collection>/<row_id>")
@pages.get("/<service>/<collection>/<row_id>/<tab>")
@access(Access.SIGNED_IN)
def show(service: str, collection: str, row_id: str, tab: str = "overview") -> ResponseReturnValue:
    """One row."""
    ctx, rtype = context(), type_of(service, collection)
    return detail(ctx, rtype, find(ctx, rtype, row_id), tab)


def detail(ctx: Context, rtype: ResourceType, row: Any, tab: str, status: int = 200, **more: Any) -> Response:
    """A tab of a row's page; `more` stands in place of what the tab loads. Raises NotFound."""
    tabs = tabs_of(ctx, rtype, row)
    current = next((each for each in tabs if each.name == tab), None)
    if current is None:
        raise NotFound("There is nothing at this address.")
    values: dict[str, Any] = {
        "rtype": rtype, "base": base_of(rtype), "row": row, "tabs": tabs, "tab": current, "actions": actions_of(ctx, rtype, row), "cell": cells(ctx, rtype, [row]),
        "activity": activity_of(ctx, rtype, row, limit=100 if tab == "activity" else 8), "tab_template": _tab_template(rtype, current),
        "references": references(ctx, rtype, row), "estimate_cost": rtype.hourly_cost_usd(row), "hidden": rtype.veil(ctx, [row]).get(row.id, {}),
    }  # fmt: skip
    if current.load is not None:
        values |= current.load(ctx, row)
    return render("resource/detail.html", status, **{**values, **more})


def _tab_template(rtype: ResourceType, tab: Tab) -> str:
    return template(rtype, f"tab_{tab.template}")


def references(ctx: Context, rtype: ResourceType, row: Any) -> dict[str, tuple[str, str]]:
    """Field → (name, address) of what this row refers to and the user may see; without an address where there is no page."""
    found = _whose(ctx, row)
    for name, info in rtype.fields().items():
        target = ctx.registry.get(info.kind.type_key) if isinstance(info.kind, Ref) else None
        value = getattr(row, name)
        if target is not None and value:
            try:
                other = find(ctx, target, value)
            except NotFound:
                continue
            found[name] = (other.name, f"{base_of(target)}/{other.id}")
    return found


def _whose(ctx: Context, row: Any) -> dict[str, tuple[str, str]]:
    """Project and owner by name, for those who may know the project."""
    if row.project_of() is None:
        return {}
    try:
        project = project_find(ctx, row.project_of())
    except NotFound:
        return {}
    owner = ctx.db.get(User, row.owner_id) if row.owner_id else None
    return {"project_id": (project.name, f"/projects/{project.id}")} | ({"owner_id": (owner.username, "")} if owner else {})


@pages.get("/<service>/<collection>/<row_id>/state")
@access(Access.SIGNED_IN)
def state(service: str, collection: str, row_id: str) -> ResponseReturnValue:
    """State and actions of a page's head, while they are changing."""
    ctx, rtype = context(), type_of(service, collection)
    row = find(ctx, rtype, row_id)
    return render("resource/head.html", rtype=rtype, base=base_of(rtype), row=row, actions=actions_of(ctx, rtype, row))


@pages.route("/<service>/<collection>/<row_id>/actions/<verb>", methods=["GET", "POST"])
@access(Access.SIGNED_IN)
def act(service: str, collection: str, row_id: str, verb: str) -> ResponseReturnValue:
    """Ask, then do."""
    ctx, rtype = context(), type_of(service, collection)
    op = rtype.operation(verb)
    if op is None or op.internal or op.effect is Effect.CREATE:
        raise NotFound("There is nothing at this address.")
    row = find(ctx, rtype, row_id)
    if request.method == "GET":
        return _form_page(ctx, rtype, op, OperationForm(ctx, op, row=row), status=200, row=row)
    form = OperationForm(ctx, op, typed=request.form, row=row)
    if CHECK in request.form:
        return _form_page(ctx, rtype, op, form, status=200, row=row)
    name = row.name
    if op.danger and request.form.get("confirm", "") != name:
        form.message = f"Type {name} to confirm."
        return _form_page(ctx, rtype, op, form, status=422, row=row)
    try:
        outcome = _submit(ctx, op, row_id, form)
    except ConfirmationRequired:
        raise
    except PortalError as error:
        return _refused(ctx, rtype, op, form, error, row=find(ctx, rtype, row_id))
    if op.effect is Effect.REMOVE and not outcome.jobs:
        return go(base_of(rtype), f"{name}: {within(op.label)} is done.")
    return go(
        f"{base_of(rtype)}/{outcome.row.id}{_back(rtype)}", f"{outcome.row.name}: {within(op.label)} {'has begun' if outcome.jobs else 'is done'}."
    )
