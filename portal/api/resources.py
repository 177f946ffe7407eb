"""Endpoints of every resource type: collection, item, operations, bulk actions and events, derived from the registry."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import urlencode

from flask import request
from flask.typing import ResponseReturnValue

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint, Query, Schema
from portal.api.represent import represent, represent_all
from portal.api.schemas import LISTED, TEXT, thing
from portal.http.listing import flag, list_query, paging, whole
from portal.http.request import context, portal_settings
from portal.kernel.activity import events_after
from portal.kernel.context import Context
from portal.kernel.declare import Effect, Operation, Outcome
from portal.kernel.errors import InvalidRequest, PortalError
from portal.kernel.estimate import estimate_create
from portal.kernel.events import Event
from portal.kernel.fields import Bool, Choice, Int, State
from portal.kernel.ids import is_storable
from portal.kernel.inputs import input_model_of
from portal.kernel.leaving import leaving_of
from portal.kernel.lookup import MAX_PAGE_SIZE, find, list_rows
from portal.kernel.operations import run
from portal.kernel.resource import Registry, ResourceType
from portal.kernel.wording import within

MAX_BULK = 100
EVENT_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "integer"}, "at": {"type": "string", "format": "date-time"}, "type": TEXT, "resource_id": TEXT, "resource_name": TEXT,
        "project_id": {"type": ["string", "null"]}, "actor": TEXT, "payload": {"type": "object"},
    },
}  # fmt: skip


ESTIMATE_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "is_possible": {"type": "boolean"}, "problem": {"type": ["object", "null"]}, "impacts": {"type": "array", "items": {"type": "object"}},
        "hourly_cost_usd": {"type": ["number", "null"]},
    },
}  # fmt: skip


def endpoints_of(registry: Registry) -> Iterator[Endpoint]:
    """All endpoints of all types."""
    for rtype in registry:
        yield from _Type(rtype).endpoints()


def list_schema(item: Schema) -> Schema:
    """Schema of a list's envelope."""
    link = {"type": ["string", "null"], "description": "Where the next or previous page is."}
    properties = {"count": {"type": "integer"}, "next": link, "previous": link, "results": {"type": "array", "items": item}}
    return {"type": "object", "properties": properties, "required": ["count", "next", "previous", "results"]}


def ref(name: str) -> Schema:
    """A reference into the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def schema_name(rtype: ResourceType) -> str:
    """Name of a type's schema, such as `Instance`."""
    return rtype.model.__name__


def aliases(rtype: ResourceType, rest: str = "") -> tuple[str, ...]:
    """The other paths of a canonical one: below /api/<service> and in the flat name space, there with underscores for dashes in actions."""
    flat = {rtype.collection, rtype.collection.replace("-", "_")}
    elsewhere = (f"{path}{rest.replace('-', '_') if path.startswith(f'{PREFIX}/services/') else rest}" for path in rtype.also_at)
    below = (f"{PREFIX}/services/{name}{rest.replace('-', '_')}" for name in sorted(flat))
    return (f"/api/{rtype.service}/{rtype.collection}{rest}", *below, *elsewhere)


PAGING = (
    Query("limit", f"How many, at most {MAX_PAGE_SIZE}.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": 20}),
    Query("cursor", "Where the page begins; taken from `next` or `previous`."),
    Query("offset", "How many to leave out; `cursor` costs less.", {"type": "integer", "minimum": 0, "maximum": 10_000}),
    Query("page", "Number of the page, instead of `offset`.", {"type": "integer", "minimum": 1}),
    Query("page_size", "The same as `limit`.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE}),
)


class _Type:
    """The endpoints of one type."""

    def __init__(self, rtype: ResourceType) -> None:
        self.rtype = rtype
        self.base = f"/{rtype.service}/{rtype.collection}"
        self.item_rest = f"/{{{rtype.id_name}}}"
        self.prefix = f"{rtype.service}.{rtype.collection}"

    def endpoints(self) -> Iterator[Endpoint]:
        rtype, one = self.rtype, ref(schema_name(self.rtype))
        yield self._collection("GET", "list", self.list, f"List {rtype.plural.lower()}", {200: list_schema(one)}, query=self._list_query())
        yield self._item("GET", "get", self.get, f"One {rtype.label.lower()}", {200: one, 304: None})
        yield self._item("GET", "events", self.events, f"What happened to the {rtype.label.lower()}", {200: list_schema(EVENT_SCHEMA)}, rest="/events",
                         query=PAGING[:2])  # fmt: skip
        if rtype.leaving is not None:
            leaving = thing(resources=LISTED, in_the_way={"type": "array", "items": TEXT})
            summary = f"What the deletion of the {within(rtype.label)} with all of it would take along, and what is in its way"
            yield self._item("GET", "deletion", self.deletion, summary, {200: leaving}, rest="/deletion")
        for op in rtype.operations:
            if not op.internal:
                yield from self._of_operation(op)
        if any(op.bulk for op in rtype.operations):
            yield self._bulk()

    def _collection(self, method: str, name: str, view: Any, summary: str, answers: Mapping[int, Schema | None], **more: Any) -> Endpoint:
        rest = more.pop("rest", "")
        return Endpoint(
            method, self.base + rest, f"{self.prefix}.{name}", view, summary, self.rtype.plural, answers, aliases=aliases(self.rtype, rest),
            refuses=more.pop("refuses", (403,)), **more,
        )  # fmt: skip

    def _item(self, method: str, name: str, view: Any, summary: str, answers: Mapping[int, Schema | None], **more: Any) -> Endpoint:
        rest = self.item_rest + more.pop("rest", "")
        return self._collection(method, name, view, summary, answers, rest=rest, refuses=(403, 404, *more.pop("refuses", ())), **more)

    def _of_operation(self, op: Operation) -> Iterator[Endpoint]:
        schema = input_model_of(op).model_json_schema(ref_template="#/components/schemas/{model}") if op.params else None
        # At once, with a job, or either, where that depends on the installation.
        done = {code: ref(schema_name(self.rtype)) for code in ((202,) if op.steps and op.by_job is None else (200, 202) if op.steps else (200,))}
        required = bool(schema and schema.get("required"))
        if op.effect is Effect.CREATE:
            answers = {201: ref(schema_name(self.rtype)), 202: ref(schema_name(self.rtype))} if op.steps else {201: ref(schema_name(self.rtype))}
            yield self._collection("POST", "create", self._creating(op), op.summary, answers, body=schema, refuses=(403, 409), idempotent=True)
            summary = f"What a new {self.rtype.label.lower()} would take of the quota, and why it would be refused"
            yield self._collection("POST", "estimate", self._estimating(op), summary, {200: ESTIMATE_SCHEMA}, rest="/estimate", body=schema)
        elif op.verb == "update":
            for method in ("PATCH", "PUT"):
                yield self._item(method, f"{method.lower()}", self._changing(op), op.summary, done, body=schema, body_required=required, refuses=(409, 412),
                                 if_match=True)  # fmt: skip
        else:
            verb = op.verb.replace("_", "-")
            if op.effect is Effect.REMOVE:
                gone: Mapping[int, Schema | None] = {202: done[202], **({204: None} if op.by_job else {})} if op.steps else {204: None}
                own = schema if op.verb == "delete" else None
                yield self._item(
                    "DELETE", "delete", self._changing(op), op.summary, gone, refuses=(409, 412), if_match=True, body=own, body_required=False
                )
            if op.verb != "delete":
                yield self._item("POST", verb, self._changing(op), op.summary, done, rest=f"/{verb}", body=schema, body_required=required,
                                 refuses=(409, 412), if_match=True, idempotent=True)  # fmt: skip

    def _list_query(self) -> tuple[Query, ...]:
        fields = self.rtype.fields()
        by_name = {name: info for name, info in fields.items() if info.filterable}
        by_name |= {alias: fields[name] for alias, name in self.rtype.aliases.items() if name in by_name}
        sortable = [sign + name for name, info in fields.items() if info.sortable for sign in ("", "-")]
        filters = [
            Query(name, f"Only those with this {info.label.lower() or name}.", self._filter_schema(info.kind)) for name, info in by_name.items()
        ]
        return (
            *filters, Query("search", f"Text in {' or '.join(self.rtype.search)}.", {"type": "string", "maxLength": 100}),
            Query("tag", "key:value, or a key alone; may be repeated."), Query("ordering", "Field to sort by, with - in front for descending.",
                                                                              {"type": "string", "enum": sortable}),
            Query("all_projects", "Of all projects that you may see, not only the current one.", {"type": "boolean"}), *PAGING,
        )  # fmt: skip

    def _filter_schema(self, kind: object) -> Schema:
        if isinstance(kind, State):
            return {"type": "string", "enum": list(self.rtype.states())}
        if isinstance(kind, Choice):
            return {"type": "string", "enum": [option for option in kind.options if option]}
        return {"type": "boolean"} if isinstance(kind, Bool) else {"type": "integer"} if isinstance(kind, Int) else TEXT

    # -- views ---------------------------------------------------------------------------------------------------------------------------

    def list(self) -> ResponseReturnValue:
        """A page of what the caller may see."""
        return io.answer(listed(self.rtype))

    def get(self, **path: str) -> ResponseReturnValue:
        """One row, with its version as entity tag."""
        row = find(context(), self.rtype, path[self.rtype.id_name])
        tag = io.etag(row)
        if io.not_modified(tag):
            response = io.empty()
            response.status_code = 304
            response.headers["ETag"] = tag
            return response
        return io.answer(represent(context(), self.rtype, row), headers={"ETag": tag})

    def events(self, **path: str) -> ResponseReturnValue:
        """Events of one row, oldest first."""
        ctx = context()
        row = find(ctx, self.rtype, path[self.rtype.id_name])
        return io.answer(event_feed(resource_id=row.id))

    def deletion(self, **path: str) -> ResponseReturnValue:
        """Everything that would go."""
        ctx = context()
        found = leaving_of(ctx, self.rtype, find(ctx, self.rtype, path[self.rtype.id_name]))
        return io.answer({"resources": [asdict(each) for each in found.resources], "in_the_way": list(found.in_the_way)})

    def _creating(self, op: Operation) -> Any:
        def create() -> ResponseReturnValue:
            outcome = run(context(), op, None, io.read_object())
            return self._answer(outcome, 202 if outcome.jobs else 201)

        return create

    def _estimating(self, op: Operation) -> Any:
        def estimate() -> ResponseReturnValue:
            found = estimate_create(context(), op, io.read_object())
            problem = {"error": found.problem.code, "message": found.problem.message, "details": found.problem.details} if found.problem else None
            impacts = [{**asdict(each), "is_exceeded": each.is_exceeded} for each in found.impacts]
            return io.answer({"is_possible": problem is None, "problem": problem, "impacts": impacts, "hourly_cost_usd": found.hourly_cost_usd})

        return estimate

    def _changing(self, op: Operation) -> Any:
        def change(**path: str) -> ResponseReturnValue:
            data = io.read_object() | (_flags(op) if request.method == "DELETE" else {})
            outcome = run(context(), op, path[self.rtype.id_name], data, expected_version=io.expected_version())
            if op.effect is Effect.REMOVE and not outcome.jobs:
                return io.empty()
            return self._answer(outcome, 202 if outcome.jobs else 200)

        return change

    def _answer(self, outcome: Outcome, status: int) -> ResponseReturnValue:
        shown = {**represent(context(), self.rtype, outcome.row), **outcome.once}
        if outcome.jobs:
            shown["job_id"] = outcome.job_id
        if len(outcome.rows) > 1:
            shown["results"] = represent_all(context(), self.rtype, outcome.rows)
            shown["job_ids"] = list(outcome.jobs)
        headers = {"ETag": io.etag(outcome.row)}
        if status in {201, 202}:
            headers["Location"] = f"{PREFIX}{self.base}/{outcome.row.id}"
        if outcome.jobs:
            headers["Link"] = f'<{PREFIX}/jobs/{outcome.job_id}>; rel="monitor"'
        return io.answer(shown, status, headers=headers)

    def _bulk(self) -> Endpoint:
        verbs = [op.verb for op in self.rtype.operations if op.bulk and not op.internal]
        ids = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": MAX_BULK}
        schema = {
            "type": "object", "additionalProperties": False, "required": ["action"],
            "properties": {"action": {"type": "string", "enum": verbs}, "ids": ids, f"{self.rtype.id_name}s": ids, "parameters": {"type": "object"}},
        }  # fmt: skip
        result = {"type": "object", "properties": {"id": TEXT, "status": {"type": "string", "enum": ["success", "failure"]}}}
        answer = {"type": "object", "properties": {"succeeded": {"type": "integer"}, "failed": {"type": "integer"}, "job_ids": {"type": "array", "items": TEXT},
                                                   "results": {"type": "array", "items": result}}}  # fmt: skip
        summary = f"Do the same to several {self.rtype.plural.lower()}; each succeeds or fails on its own"
        return self._collection("POST", "bulk-action", self.bulk, summary, {200: answer}, rest="/bulk-action", body=schema)

    def bulk(self) -> ResponseReturnValue:
        """One operation on each of the named rows, every one in its own transaction."""
        data = io.read_object()
        op = self.rtype.operation(str(data.pop("action", "")))
        if op is None or not op.bulk or op.internal:
            verbs = ", ".join(each.verb for each in self.rtype.operations if each.bulk)
            raise InvalidRequest.fields({"action": [f"must be one of {verbs}."]})
        ids = data.pop("ids", None) or data.pop(f"{self.rtype.id_name}s", None)
        if not isinstance(ids, list) or not 1 <= len(ids) <= MAX_BULK or not all(isinstance(each, str) for each in ids):
            raise InvalidRequest.fields({"ids": [f"must be a list of 1 to {MAX_BULK} ids."]})
        inputs = data.pop("parameters", {})
        if data or not isinstance(inputs, dict):
            raise InvalidRequest.fields({name: ["is not a field of this request"] for name in data} or {"parameters": ["must be an object."]})
        # A key belongs to one operation; here each row has its own.
        ctx = replace(context(), idempotency_key="")
        results = [_one(ctx, op, each, inputs) for each in dict.fromkeys(ids)]
        failed = sum(result["status"] == "failure" for result in results)
        job_ids = [result["job_id"] for result in results if result.get("job_id")]
        return io.answer({"succeeded": len(results) - failed, "failed": failed, "job_ids": job_ids, "results": results})


def _flags(op: Operation) -> dict[str, bool]:
    """What the query string says to a DELETE, which often comes without a body."""
    return {name: flag(request.args, name) for name, param in op.params.items() if isinstance(param.info.kind, Bool) and name in request.args}


def _one(ctx: Context, op: Operation, row_id: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        outcome = run(ctx, op, row_id, inputs)
    except PortalError as error:
        ctx.db.rollback()
        return {"id": row_id, "status": "failure", "error": error.code, "message": error.message}
    return {"id": outcome.row.id, "status": "success", "job_id": outcome.job_id}


def listed(rtype: ResourceType, *, fixed: Mapping[str, str] | None = None, is_own: bool = False) -> dict[str, Any]:
    """A page of a type's rows, filtered as the query string says and by what is fixed; only those of the project if they are to be its own."""
    args = request.args.copy()
    for name, value in (fixed or {}).items():
        args.setlist(name, [value])
    query = replace(list_query(rtype, args), is_own=is_own)
    page = list_rows(context(), rtype, query)
    results = represent_all(context(), rtype, page.rows)
    shown = io.page_of(results, count=page.count, following=link(page.next_cursor), previous=link(page.previous_cursor))
    if page.more_than_counted:
        shown["count_is_lower_bound"] = True
    return shown


def link(cursor: str) -> str | None:
    """The address of the page that begins at a cursor."""
    if not cursor:
        return None
    kept = [(name, value) for name in request.args for value in request.args.getlist(name) if name not in {"cursor", "page", "offset"}]
    root = portal_settings().public_url.rstrip("/") or request.host_url.rstrip("/")
    return f"{root}{request.path}?{urlencode([*kept, ('cursor', cursor)])}"


def event_feed(*, resource_id: str = "") -> dict[str, Any]:
    """Events after the one that `cursor` names."""
    limit, _ = paging(request.args)
    after = whole(request.args, "cursor", 0, low=0, high=2**62)
    rows = events_after(context(), after_id=after, resource_id=resource_id, limit=limit)
    following = link(str(rows[-1].id)) if len(rows) == limit else None
    return io.page_of([show_event(row) for row in rows], count=len(rows), following=following)


def show_event(row: Event) -> dict[str, Any]:
    """An event as the API gives it."""
    return {
        "id": row.id, "at": io.moment(row.at), "type": row.type, "resource_id": row.resource_id, "resource_name": row.resource_name,
        "project_id": row.project_id, "actor": row.actor, "payload": row.payload,
    }  # fmt: skip


def only(*names: str) -> None:
    """Refuse query parameters that an endpoint does not know."""
    unknown = sorted(set(request.args) - set(names))
    if unknown:
        raise InvalidRequest.fields({name: [f"is no parameter here; there are {', '.join(names) or 'none'}."] for name in unknown})
    if odd := sorted(name for name, value in request.args.items(multi=True) if not is_storable(value)):
        raise InvalidRequest.fields({name: ["holds characters that no text here has."] for name in odd})
