"""Pages of every resource type: list, form, detail, actions, bulk actions, export. A new type needs nothing here.

`templates/<service>/<type>/<page>.html` is used instead of `templates/resource/<page>.html` where it exists.
"""

import csv
import io
import json
import shlex
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flask import Blueprint, Response, current_app, request, stream_with_context
from flask.typing import ResponseReturnValue
from jinja2 import TemplateNotFound
from werkzeug.datastructures import MultiDict

from portal.http.guard import Access, access
from portal.http.listing import list_query
from portal.http.request import context, signed_in
from portal.identity.accounts import preferences_update
from portal.kernel.activity import activity_of
from portal.kernel.authz import Target, decide, target_of
from portal.kernel.context import Context
from portal.kernel.declare import Effect, Operation, Outcome
from portal.kernel.errors import InvalidRequest, NotFound, PortalError
from portal.kernel.estimate import estimate_create
from portal.kernel.lookup import ListQuery, Page, find, list_rows
from portal.kernel.operations import run, state_reason
from portal.kernel.resource import Column, ResourceType
from portal.web.compute_pages import TABS, Tab
from portal.web.export import safe_cell
from portal.web.forms import OperationForm
from portal.web.page import field_errors, form_status, go, is_fragment, render

pages = Blueprint("resources", __name__)
NOT_FILTERS = frozenset({"columns", "ids", "csrf_token"})
CSV_BATCH = 100
MAX_BULK = 100


@dataclass(frozen=True, slots=True)
class Action:
    """An operation as a button: why it cannot be used now stands beside it."""

    op: Operation
    url: str
    reason: str

    @property
    def is_open(self) -> bool:
        """Whether it can be used now."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that is set, as a chip; `without` is the address of the list without it."""

    label: str
    value: str
    without: str


def type_of(service: str, collection: str) -> ResourceType:
    """The type at an address. Raises NotFound."""
    rtype = context().registry.by_collection(service, collection)
    if rtype is None:
        raise NotFound("There is nothing at this address.")
    return rtype


def base_of(rtype: ResourceType) -> str:
    """Address of a type's list."""
    return f"/{rtype.service}/{rtype.collection}"


def template(rtype: ResourceType, page: str) -> str:
    """The type's own template of a page, or the general one."""
    own = f"{rtype.service}/{rtype.name}/{page}"
    try:
        current_app.jinja_env.get_template(own)
    except TemplateNotFound:
        return f"resource/{page}"
    return own


# -- lists -----------------------------------------------------------------------------------------------------------------------------------


@pages.get("/<service>/<collection>")
@access(Access.SIGNED_IN)
def index(service: str, collection: str) -> ResponseReturnValue:
    """A page of rows."""
    ctx, rtype = context(), type_of(service, collection)
    args = _shown_args(rtype)
    page = list_rows(ctx, rtype, list_query(rtype, args, ignore=NOT_FILTERS))
    values: dict[str, Any] = {
        "rtype": rtype, "base": base_of(rtype), "page": page, "columns": shown_columns(rtype), "filters": _filters(rtype), "args": request.args,
        "create": _create_action(ctx, rtype), "bulk": [op for op in rtype.operations if op.bulk and not op.internal], "sort": page.order,
        "here": _with({}), "older": _with({"cursor": page.next_cursor}), "newer": _with({"cursor": page.previous_cursor}), "with_args": _with,
        "cell": cell, "actions": lambda row: actions_of(ctx, rtype, row), "states": rtype.states(), "is_filtered": bool(_filters(rtype)),
    }  # fmt: skip
    return render(template(rtype, "rows.html" if _wants_rows() else "list.html"), **values)


def _wants_rows() -> bool:
    return is_fragment() and request.headers.get("HX-Target") == "rows"


def _shown_args(rtype: ResourceType) -> "MultiDict[str, str]":
    """The query string, without what forms send for fields that were left empty."""
    del rtype
    return MultiDict([(name, value) for name in request.args for value in request.args.getlist(name) if value and name not in NOT_FILTERS])


def _with(changes: Mapping[str, str]) -> str:
    """This list's address with other parameters; the place in the list goes unless it is given."""
    kept = [(name, value) for name, value in _shown_args_all() if name not in changes and name != "cursor"]
    pairs = [*kept, *((name, value) for name, value in changes.items() if value)]
    from urllib.parse import urlencode

    return request.path + (f"?{urlencode(pairs)}" if pairs else "")


def _shown_args_all() -> list[tuple[str, str]]:
    return [(name, value) for name in request.args for value in request.args.getlist(name) if value and name not in NOT_FILTERS]


def _filters(rtype: ResourceType) -> list[Filter]:
    from urllib.parse import urlencode

    pairs, found = _shown_args_all(), []
    fields = rtype.fields()
    for number, (name, value) in enumerate(pairs):
        if name in {"cursor", "ordering", "limit"}:
            continue
        rest = [pair for place, pair in enumerate(pairs) if place != number and pair[0] != "cursor"]
        info = fields.get(rtype.aliases.get(name, name))
        label = {"search": "Text", "tag": "Tag"}.get(name, info.label if info else name)
        found.append(Filter(label, value, request.path + (f"?{urlencode(rest)}" if rest else "")))
    return found


def _create_action(ctx: Context, rtype: ResourceType) -> Action | None:
    op = next((op for op in rtype.operations if op.effect is Effect.CREATE and not op.internal), None)
    if op is None:
        return None
    decision = decide(ctx, f"{rtype.key}.{op.verb}", Target(ctx.project_id, ctx.principal.user_id))
    return Action(op, f"{base_of(rtype)}/new", "" if decision.allowed else decision.because)


def shown_columns(rtype: ResourceType) -> list[Column]:
    """The columns that the user wants to see; the name is always there."""
    found = signed_in()
    chosen = found.user.preferences.get(f"columns.{rtype.key}") if found else None
    if not isinstance(chosen, list):
        return [column for column in rtype.columns if not column.hidden]
    return [column for column in rtype.columns if column.key in chosen or column is rtype.columns[0]]


@pages.post("/<service>/<collection>/columns")
@access(Access.SIGNED_IN)
def choose_columns(service: str, collection: str) -> ResponseReturnValue:
    """Keep which columns are shown."""
    rtype = type_of(service, collection)
    known = {column.key for column in rtype.columns}
    preferences_update(context(), {f"columns.{rtype.key}": [key for key in request.form.getlist("columns") if key in known]})
    return go(base_of(rtype))


def cell(rtype: ResourceType, row: Any, key: str) -> Any:
    """What a column shows of a row."""
    return rtype.show[key](row) if key in rtype.show else getattr(row, key)


@pages.get("/<service>/<collection>/rows/<row_id>")
@access(Access.SIGNED_IN)
def one_row(service: str, collection: str, row_id: str) -> ResponseReturnValue:
    """A row that replaces itself while its state is changing."""
    ctx, rtype = context(), type_of(service, collection)
    row = find(ctx, rtype, row_id)
    return render(
        "resource/row.html", rtype=rtype, base=base_of(rtype), row=row, columns=shown_columns(rtype), cell=cell, bulk=any(op.bulk for op in rtype.operations),
        actions=lambda each: actions_of(ctx, rtype, each),
    )  # fmt: skip


@pages.get("/<service>/<collection>.csv")
@access(Access.SIGNED_IN)
def as_csv(service: str, collection: str) -> ResponseReturnValue:
    """The whole filtered list, sent as it is read."""
    rtype = type_of(service, collection)
    query = replace(list_query(rtype, _shown_args(rtype), ignore=NOT_FILTERS), limit=CSV_BATCH, cursor="", offset=0)
    lines = _csv_lines(context(), rtype, query, shown_columns(rtype))
    headers = {"Content-Disposition": f'attachment; filename="{rtype.collection}.csv"'}
    return Response(stream_with_context(lines), content_type="text/csv; charset=utf-8", headers=headers)


def _csv_lines(ctx: Context, rtype: ResourceType, query: ListQuery, columns: Sequence[Column]) -> Iterator[str]:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["ID", *(column.label for column in columns)])
    while True:
        page: Page = list_rows(ctx, rtype, query)
        for row in page.rows:
            writer.writerow([row.id, *(safe_cell(cell(rtype, row, column.key)) for column in columns)])
        yield out.getvalue()
        out.seek(0)
        out.truncate()
        if not page.next_cursor:
            return
        query = replace(query, cursor=page.next_cursor)
        ctx.db.expunge_all()


# -- forms -----------------------------------------------------------------------------------------------------------------------------------


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
        chosen = MultiDict([(name, value) for name, value in request.args.items(multi=True) if name in op.params]) or None
        return _form_page(ctx, rtype, op, OperationForm(ctx, op, typed=chosen), status=200)
    form = OperationForm(ctx, op, typed=request.form)
    try:
        outcome = _submit(ctx, op, None, form)
    except PortalError as error:
        return _refused(ctx, rtype, op, form, error)
    if outcome.once:
        return _shown_once(rtype, outcome)
    if len(outcome.rows) > 1:
        return go(base_of(rtype), f"{len(outcome.rows)} {rtype.plural.lower()} are being created.")
    return go(f"{base_of(rtype)}/{outcome.row.id}", f"{rtype.label} {outcome.row.name} is {'being ' if outcome.jobs else ''}created.")


def _submit(ctx: Context, op: Operation, target: str | None, form: OperationForm) -> Outcome:
    key = request.form.get("idempotency_key", "")[:255]
    version = request.form.get("version", "")
    expected = int(version) if version.isascii() and version.isdigit() and len(version) < 12 else None  # noqa: PLR2004 - versions are small
    return run(replace(ctx, idempotency_key=key), op, target, form.data(), expected_version=expected, strict=False)


def _refused(ctx: Context, rtype: ResourceType, op: Operation, form: OperationForm, error: PortalError, *, row: Any = None) -> ResponseReturnValue:
    ctx.db.rollback()
    form.errors, form.message = field_errors(error, list(form.widgets))
    return _form_page(ctx, rtype, op, form, status=form_status(error), row=row)


def _form_page(ctx: Context, rtype: ResourceType, op: Operation, form: OperationForm, *, status: int, row: Any = None) -> ResponseReturnValue:
    is_create = op.effect is Effect.CREATE
    base = base_of(rtype)
    if is_create:
        ctx_allowed = _create_action(ctx, rtype)
        denied = ctx_allowed.reason if ctx_allowed else ""
    else:
        denied = ""
    values: dict[str, Any] = {
        "rtype": rtype, "base": base, "op": op, "form": form, "row": row, "key": request.form.get("idempotency_key") or str(uuid.uuid4()), "denied": denied,
        "action": f"{base}/new" if is_create else f"{base}/{row.id}/actions/{op.verb}", "row_version": request.form.get("version") or (row.version if row else ""),
    }  # fmt: skip
    if is_create:
        values |= _effects(ctx, rtype, op, form)
    page = "form.html" if is_create or op.partial else "dialog.html"
    if is_fragment() and request.method == "POST":
        page = f"_{page}"
    return render(template(rtype, page), status, **values)


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
    from portal.kernel.fields import Int, Number

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


# -- one row ---------------------------------------------------------------------------------------------------------------------------------


def actions_of(ctx: Context, rtype: ResourceType, row: Any) -> list[Action]:
    """What can be done to a row, each with the reason why not now."""
    base = f"{base_of(rtype)}/{row.id}/actions"
    found = []
    for op in rtype.operations:
        if op.internal or not op.in_menu or op.effect is Effect.CREATE or (op.verb, bool(row.locked)) in {("lock", True), ("unlock", False)}:
            continue
        found.append(Action(op, f"{base}/{op.verb}", _why_not(ctx, rtype, op, row)))
    return found


def _why_not(ctx: Context, rtype: ResourceType, op: Operation, row: Any) -> str:
    decision = decide(ctx, f"{rtype.key}.{op.verb}", target_of(row))
    if not decision.allowed:
        return decision.because
    if row.locked and not op.while_locked:
        return "Locked against changes."
    return state_reason(op, row)


def tabs_of(ctx: Context, rtype: ResourceType, row: Any) -> list[Tab]:
    """Tabs of a row's page that the user may see."""
    own = [tab for tab in TABS.get(rtype.key, ()) if not tab.needs or decide(ctx, tab.needs, target_of(row)).allowed]
    return [Tab("overview", "Overview", "overview.html"), *own, Tab("activity", "Activity", "activity.html")]


@pages.get("/<service>/<collection>/<row_id>")
@pages.get("/<service>/<collection>/<row_id>/<tab>")
@access(Access.SIGNED_IN)
def show(service: str, collection: str, row_id: str, tab: str = "overview") -> ResponseReturnValue:
    """One row."""
    ctx, rtype = context(), type_of(service, collection)
    row = find(ctx, rtype, row_id)
    tabs = tabs_of(ctx, rtype, row)
    current = next((each for each in tabs if each.name == tab), None)
    if current is None:
        raise NotFound("There is nothing at this address.")
    values: dict[str, Any] = {
        "rtype": rtype, "base": base_of(rtype), "row": row, "tabs": tabs, "tab": current, "actions": actions_of(ctx, rtype, row), "cell": cell,
        "activity": activity_of(ctx, rtype, row, limit=100 if tab == "activity" else 8), "tab_template": _tab_template(rtype, current),
        "references": references(ctx, rtype, row), "estimate_cost": rtype.hourly_cost_usd(row),
    }  # fmt: skip
    if current.load is not None:
        values |= current.load(ctx, row)
    return render("resource/detail.html", **values)


def _tab_template(rtype: ResourceType, tab: Tab) -> str:
    return template(rtype, f"tab_{tab.template}")


def references(ctx: Context, rtype: ResourceType, row: Any) -> dict[str, tuple[str, str]]:
    """Field → (name, address) of rows that this one refers to and that the user may see."""
    from portal.kernel.fields import Ref

    found = {}
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
    name = row.name
    if op.danger and request.form.get("confirm", "") != name:
        form.message = f"Type {name} to confirm."
        return _form_page(ctx, rtype, op, form, status=422, row=row)
    try:
        outcome = _submit(ctx, op, row_id, form)
    except PortalError as error:
        return _refused(ctx, rtype, op, form, error, row=find(ctx, rtype, row_id))
    if op.effect is Effect.REMOVE and not outcome.jobs:
        return go(base_of(rtype), f"{name}: {op.label.lower()} is done.")
    return go(f"{base_of(rtype)}/{outcome.row.id}", f"{outcome.row.name}: {op.label.lower()} {'has begun' if outcome.jobs else 'is done'}.")


# -- bulk ------------------------------------------------------------------------------------------------------------------------------------


@pages.route("/<service>/<collection>/bulk/<verb>", methods=["GET", "POST"])
@access(Access.SIGNED_IN)
def bulk(service: str, collection: str, verb: str) -> ResponseReturnValue:
    """The same for several rows: exactly those that were ticked, each in its own transaction."""
    ctx, rtype = context(), type_of(service, collection)
    op = rtype.operation(verb)
    if op is None or not op.bulk or op.internal:
        raise NotFound("There is nothing at this address.")
    ids = list(dict.fromkeys(request.values.getlist("ids")))[: MAX_BULK + 1]
    if not 1 <= len(ids) <= MAX_BULK:
        raise InvalidRequest(f"Tick 1 to {MAX_BULK} {rtype.plural.lower()} first.")
    if request.method == "GET":
        rows = [(row, _why_not(ctx, rtype, op, row)) for row in (find(ctx, rtype, row_id) for row_id in ids)]
        return render("resource/bulk.html", rtype=rtype, base=base_of(rtype), op=op, rows=rows, ids=ids)
    done, failed = [], []
    for row_id in ids:
        try:
            done.append(run(replace(ctx, idempotency_key=""), op, row_id, {}, strict=False).row.name)
        except PortalError as error:
            ctx.db.rollback()
            failed.append((row_id, error.message))
    summary = f"{op.label}: {len(done)} succeeded, {len(failed)} failed."
    if not failed:
        return go(base_of(rtype), summary)
    return render("resource/bulk_done.html", 200, rtype=rtype, base=base_of(rtype), op=op, done=done, failed=failed, summary=summary)
