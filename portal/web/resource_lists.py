"""Lists of every resource type: rows by page, the columns that are shown, export, and the same for several rows."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, request, stream_with_context
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import MultiDict

from portal.http.guard import Access, access
from portal.http.listing import list_query
from portal.http.request import context
from portal.identity.preferences import preferences_update
from portal.kernel.cells import safe_cell
from portal.kernel.context import Context
from portal.kernel.errors import ConfirmationRequired, InvalidRequest, NotFound, PortalError
from portal.kernel.lookup import ListQuery, Page, find, list_rows
from portal.kernel.operations import run
from portal.kernel.resource import Column, ResourceType
from portal.kernel.wording import within
from portal.web.derived import actions_of, base_of, cells, create_action, links, shown_columns, template, type_of, why_not
from portal.web.page import go, is_fragment, render

pages = Blueprint("lists", __name__)
NOT_FILTERS = frozenset({"columns", "ids", "csrf_token"})
CSV_BATCH = 100
MAX_BULK = 100


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that is set, as a chip; `without` is the address of the list without it."""

    label: str
    value: str
    without: str


@pages.get("/<service>/<collection>")
@access(Access.SIGNED_IN)
def index(service: str, collection: str) -> ResponseReturnValue:
    """A page of rows."""
    ctx, rtype = context(), type_of(service, collection)
    args = MultiDict(_given())
    page = list_rows(ctx, rtype, list_query(rtype, args, ignore=NOT_FILTERS))
    values: dict[str, Any] = {
        "rtype": rtype, "base": base_of(rtype), "page": page, "columns": shown_columns(rtype), "filters": _filters(rtype), "args": request.args,
        "create": create_action(ctx, rtype), "bulk": [op for op in rtype.operations if op.bulk and not op.internal], "sort": page.order,
        "here": _with({}), "older": _with({"cursor": page.next_cursor}), "newer": _with({"cursor": page.previous_cursor}), "with_args": _with,
        "cell": cells(ctx, rtype, page.rows), "links": links(ctx, rtype, page.rows, shown_columns(rtype)),
        "actions": lambda row: actions_of(ctx, rtype, row), "states": rtype.states(), "is_filtered": bool(_filters(rtype)),
    }  # fmt: skip
    return render(template(rtype, "rows.html" if _wants_rows() else "list.html"), **values)


def _wants_rows() -> bool:
    return is_fragment() and request.headers.get("HX-Target") == "rows"


def _given() -> list[tuple[str, str]]:
    """The query string, without what forms send for fields that were left empty."""
    return [(name, value) for name in request.args for value in request.args.getlist(name) if value and name not in NOT_FILTERS]


def _with(changes: Mapping[str, str]) -> str:
    """This list's address with other parameters; the place in the list goes unless it is given."""
    kept = [(name, value) for name, value in _given() if name not in changes and name != "cursor"]
    pairs = [*kept, *((name, value) for name, value in changes.items() if value)]
    return request.path + (f"?{urlencode(pairs)}" if pairs else "")


def _filters(rtype: ResourceType) -> list[Filter]:
    pairs, found = _given(), []
    fields = rtype.fields()
    for number, (name, value) in enumerate(pairs):
        if name in {"cursor", "ordering", "limit"}:
            continue
        rest = [pair for place, pair in enumerate(pairs) if place != number and pair[0] != "cursor"]
        info = fields.get(rtype.aliases.get(name, name))
        label = {"search": "Text", "tag": "Tag"}.get(name, info.label if info else name)
        found.append(Filter(label, value, request.path + (f"?{urlencode(rest)}" if rest else "")))
    return found


@pages.post("/<service>/<collection>/columns")
@access(Access.SIGNED_IN)
def choose_columns(service: str, collection: str) -> ResponseReturnValue:
    """Keep which columns are shown."""
    rtype = type_of(service, collection)
    known = {column.key for column in rtype.columns}
    preferences_update(context(), {f"columns.{rtype.key}": [key for key in request.form.getlist("columns") if key in known]})
    return go(base_of(rtype))


@pages.get("/<service>/<collection>/rows/<row_id>")
@access(Access.SIGNED_IN)
def one_row(service: str, collection: str, row_id: str) -> ResponseReturnValue:
    """A row that replaces itself while its state is changing."""
    ctx, rtype = context(), type_of(service, collection)
    row = find(ctx, rtype, row_id)
    return render(
        "resource/row.html", rtype=rtype, base=base_of(rtype), row=row, columns=shown_columns(rtype), cell=cells(ctx, rtype, [row]),
        links=links(ctx, rtype, [row], shown_columns(rtype)),
        bulk=any(op.bulk for op in rtype.operations), actions=lambda each: actions_of(ctx, rtype, each),
    )  # fmt: skip


@pages.get("/<service>/<collection>.csv")
@access(Access.SIGNED_IN)
def as_csv(service: str, collection: str) -> ResponseReturnValue:
    """The whole filtered list, sent as it is read."""
    rtype = type_of(service, collection)
    query = replace(list_query(rtype, MultiDict(_given()), ignore=NOT_FILTERS), limit=CSV_BATCH, cursor="", offset=0)
    lines = _csv_lines(context(), rtype, query, shown_columns(rtype))
    headers = {"Content-Disposition": f'attachment; filename="{rtype.collection}.csv"'}
    return Response(stream_with_context(lines), content_type="text/csv; charset=utf-8", headers=headers)


def _csv_lines(ctx: Context, rtype: ResourceType, query: ListQuery, columns: Sequence[Column]) -> Iterator[str]:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["ID", *(column.label for column in columns)])
    while True:
        page: Page = list_rows(ctx, rtype, query)
        cell = cells(ctx, rtype, page.rows)
        for row in page.rows:
            writer.writerow([row.id, *(safe_cell(cell(rtype, row, column.key)) for column in columns)])
        yield out.getvalue()
        out.seek(0)
        out.truncate()
        if not page.next_cursor:
            return
        query = replace(query, cursor=page.next_cursor)
        ctx.db.expunge_all()


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
        raise InvalidRequest(f"Tick 1 to {MAX_BULK} {within(rtype.plural)} first.")
    if request.method == "GET":
        rows = [(row, why_not(ctx, rtype, op, row)) for row in (find(ctx, rtype, row_id) for row_id in ids)]
        return render("resource/bulk.html", rtype=rtype, base=base_of(rtype), op=op, rows=rows, ids=ids)
    done, failed = [], []
    for row_id in ids:
        try:
            done.append(run(replace(ctx, idempotency_key=""), op, row_id, {}, strict=False).row.name)
        except ConfirmationRequired:
            raise
        except PortalError as error:
            ctx.db.rollback()
            failed.append((row_id, error.message))
    summary = f"{op.label}: {len(done)} succeeded, {len(failed)} failed."
    if not failed:
        return go(base_of(rtype), summary)
    return render("resource/bulk_done.html", 200, rtype=rtype, base=base_of(rtype), op=op, done=done, failed=failed, summary=summary)
