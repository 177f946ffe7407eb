"""Endpoints of networking that are not derived: what is in a VPC, rules and routes one by one, addresses, reachability."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from flask import request
from flask.typing import ResponseReturnValue
from pydantic import Field, StringConstraints
from sqlalchemy import select

from portal.api import body as io
from portal.api.endpoints import Endpoint, Query, Schema
from portal.api.represent import represent
from portal.api.resources import aliases, link, list_schema, listed, only, ref
from portal.api.schemas import MAYBE, NUMBER, TEXT, WHEN, YES, Input, read, thing
from portal.engines.network_ports import Direction, RuleSpec
from portal.http.audit_filters import moment
from portal.http.listing import paging, whole
from portal.http.request import context
from portal.kernel.declare import Operation, Outcome
from portal.kernel.errors import InvalidRequest, NotFound
from portal.kernel.inputs import input_model_of
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.kernel.resource import ResourceType
from portal.networking.changes import UNSEEN
from portal.networking.gateways import INTERNET_GATEWAY, internet_gateway_attach
from portal.networking.models import FlowRecord, IpAllocation, Route
from portal.networking.routes import (
    ROUTE_TABLE,
    live_targets,
    route_table_add_route,
    route_table_associate,
    route_table_create,
    route_table_disassociate,
    route_table_remove_route,
    route_table_set_default_route,
)
from portal.networking.rules import TEMPLATES, what
from portal.networking.security_groups import (
    SECURITY_GROUP,
    Packet,
    evaluate,
    security_group_add_rule,
    security_group_remove_rule,
    security_group_update_rule,
)
from portal.networking.sight import WHOLE, Sight, sight_of
from portal.networking.subnets import SUBNET, subnet_create, subnet_release_address, subnet_reserve_address, subnet_set_tier
from portal.networking.view import allocations_of, group_names, reach, rules_shown, topology_of
from portal.networking.vpc import VPC, vpc_configure_flow_logs

RULE = thing(
    rule_id=TEXT, direction=TEXT, protocol=TEXT, from_port=MAYBE, to_port=MAYBE, icmp_type=MAYBE, cidr={"type": ["string", "null"]},
    referenced_sg_id={"type": ["string", "null"]}, description=TEXT, is_enabled=YES, sentence=TEXT, warning=TEXT, connections=MAYBE, connections_read_at=WHEN,
    created_at=WHEN,
)  # fmt: skip
ROUTE = thing(
    route_id=TEXT,
    destination_cidr=TEXT,
    target_type=TEXT,
    target_id=TEXT,
    status={"type": "string", "enum": ["active", "blackhole"]},
    created_at=WHEN,
)
ALLOCATION = thing(allocation_id=TEXT, ip=TEXT, subnet_id=TEXT, resource_type=TEXT, resource_id=TEXT, description=TEXT, state=TEXT, allocated_at=WHEN)
FLOW = thing(at=WHEN, action=TEXT, protocol=TEXT, src=TEXT, src_port=NUMBER, dst=TEXT, dst_port=NUMBER, bytes=NUMBER)
NODE, EDGE = thing(id=TEXT, type=TEXT, label=TEXT, detail=TEXT, resource_id=TEXT, state=TEXT), thing(source=TEXT, target=TEXT, label=TEXT)
HOP = thing(kind=TEXT, id=TEXT, text=TEXT)
ANSWER = thing(allowed=YES, is_certain=YES, sentence=TEXT, decided_by=TEXT, decider_id=TEXT, hops={"type": "array", "items": HOP})
EVALUATION = thing(allowed=YES, rule_id={"type": ["string", "null"]}, sentence=TEXT)
TEMPLATE = thing(
    name=TEXT,
    label=TEXT,
    rules={"type": "array", "items": thing(direction=TEXT, protocol=TEXT, from_port=MAYBE, to_port=MAYBE, icmp_type=MAYBE, text=TEXT)},
)
Line = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
Port = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]

T = TypeVar("T")


class EvaluateInput(Input):
    """A packet that is imagined."""

    direction: Literal["ingress", "egress"] = "ingress"
    protocol: Literal["tcp", "udp", "icmp"] = "tcp"
    port: Port | None = Field(None, description="Destination port, or the ICMP type.")
    peer: Line = Field(description="Address or range of the other side.")


class ReachInput(Input):
    """Who is to reach whom."""

    source: Line = Field(description="Id or name of an instance or interface, an address, or internet.")
    target: Line = Field(description="The same.")
    protocol: Literal["tcp", "udp", "icmp"] = "tcp"
    port: Port | None = Field(None, description="Destination port, or the ICMP type.")


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    yield from _of_vpcs()
    yield from _of_subnets()
    yield from _of_groups()
    yield from _of_routes()
    attach = _same(internet_gateway_attach, INTERNET_GATEWAY)
    yield _on(
        INTERNET_GATEWAY, "POST /attach-vpc", "attach-vpc", attach, "The same as attach", answers={200: ref("InternetGateway")}, refuses=(409,),
        body=_body(internet_gateway_attach),
    )  # fmt: skip
    yield Endpoint("POST", "/networking/reachability", "networking.reachability", reachability, "Can one reach the other, and what decides", "VPCs",
                   {200: ANSWER}, (403,), body=ReachInput.model_json_schema(), aliases=("/api/networking/reachability",))  # fmt: skip


def _on(
    rtype: ResourceType, told: str, name: str, view: Callable[..., ResponseReturnValue], summary: str, *, answers: Mapping[int, Schema | None],
    refuses: tuple[int, ...] = (), **more: Any,
) -> Endpoint:  # fmt: skip
    """An endpoint below one row: a method and what follows the id."""
    method, _, rest = told.partition(" ")
    path = f"/{{{rtype.id_name}}}{rest}"
    base = f"/{rtype.service}/{rtype.collection}"
    return Endpoint(method, base + path, f"{rtype.service}.{rtype.collection}.{name}", view, summary, rtype.plural, answers, (403, 404, *refuses),
                    aliases=aliases(rtype, path), **more)  # fmt: skip


def _body(op: Operation, *without: str) -> Schema:
    """The body that an operation takes, but for what the path says."""
    schema = input_model_of(op).model_json_schema(ref_template="#/components/schemas/{model}")
    schema["properties"] = {name: each for name, each in schema["properties"].items() if name not in without}
    schema["required"] = [name for name in schema.get("required", ()) if name not in without]
    return schema


def _run(op: Operation, row_id: str, **fixed: str) -> Outcome:
    data = io.read_object()
    if twice := sorted(set(data) & set(fixed)):
        raise InvalidRequest.fields({name: ["is said by the path."] for name in twice})
    return run(context(), op, row_id, {**data, **fixed}, expected_version=io.expected_version())


def _still(made: T | None) -> T:
    """What a request made or changed, unless somebody took it away before it was answered. Raises NotFound."""
    if made is None:
        raise NotFound("It was made or changed, and is gone already.")
    return made


def _same(op: Operation, rtype: ResourceType) -> Callable[..., ResponseReturnValue]:
    """A view that does what the operation's own endpoint does."""

    def view(**path: str) -> ResponseReturnValue:
        outcome = _run(op, path[rtype.id_name])
        return io.answer(represent(context(), rtype, outcome.row), headers={"ETag": io.etag(outcome.row)})

    return view


# -- VPCs ------------------------------------------------------------------------------------------------------------------------------------


def _of_vpcs() -> Iterator[Endpoint]:
    for rtype in (SUBNET, SECURITY_GROUP, ROUTE_TABLE):
        one = list_schema(ref(rtype.model.__name__))
        yield _on(VPC, f"GET /{rtype.collection}", rtype.collection, partial(inside, rtype), f"{rtype.plural} of the VPC", answers={200: one})
    for rtype, op in ((SUBNET, subnet_create), (ROUTE_TABLE, route_table_create)):
        yield _on(VPC, f"POST /{rtype.collection}", f"{rtype.collection}.create", partial(make_inside, rtype, op), op.summary,
                  answers={201: ref(rtype.model.__name__)},
                  refuses=(409,), body=_body(op, "vpc"), idempotent=True)  # fmt: skip
    yield _on(VPC, "PUT /flow-logs", "flow-logs.put", _same(vpc_configure_flow_logs, VPC), "Switch the flow log on or off",
              answers={200: ref("Vpc")}, refuses=(409, 412),
              body=_body(vpc_configure_flow_logs), if_match=True)  # fmt: skip
    queries = [
        Query("src", "Only from this address."), Query("dst", "Only to this address."), Query("port", "Only to this port.",
              {"type": "integer", "minimum": 0, "maximum": 65535}),
        Query("since", "Only those that began then or later.", {"type": "string", "format": "date-time"}),
        Query("action", "Only those that were let through, or refused.", {"type": "string", "enum": ["accept", "reject"]}),
        Query("limit", "How many.", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}), Query("cursor", "Where the page begins."),
    ]  # fmt: skip
    yield _on(
        VPC,
        "GET /flow-logs",
        "flow-logs.get",
        flow_logs,
        "Connections that were seen beginning, newest first",
        answers={200: list_schema(FLOW)},
        query=queries,
    )
    graph = thing(nodes={"type": "array", "items": NODE}, edges={"type": "array", "items": EDGE}, hidden=NUMBER)
    yield _on(VPC, "GET /topology", "topology", topology, "The VPC as a graph", answers={200: graph})
    totals = thing(total=NUMBER, usable=NUMBER, allocated=NUMBER, free=NUMBER)
    found = thing(count=NUMBER, totals=totals, results={"type": "array", "items": ALLOCATION})
    yield _on(VPC, "GET /ip-allocations", "ip-allocations", ip_allocations, "Addresses that are taken, and how many are left", answers={200: found},
              query=[Query("subnet_id", "Only of this subnet.")])  # fmt: skip


def inside(rtype: ResourceType, vpc_id: str) -> ResponseReturnValue:
    """A list, of one VPC."""
    vpc = find(context(), VPC, vpc_id)
    return io.answer(listed(rtype, fixed={"vpc_id": vpc.id}))


def make_inside(rtype: ResourceType, op: Operation, vpc_id: str) -> ResponseReturnValue:
    """A new row in one VPC."""
    ctx = context()
    vpc = find(ctx, VPC, vpc_id)
    data = io.read_object()
    if "vpc" in data or "vpc_id" in data:
        raise InvalidRequest.fields({"vpc": ["is said by the path."]})
    outcome = run(ctx, op, None, {**data, "vpc": vpc.id})
    return io.answer(represent(ctx, rtype, outcome.row), 201, headers={"ETag": io.etag(outcome.row)})


def flow_logs(vpc_id: str) -> ResponseReturnValue:
    """What flowed."""
    ctx = context()
    only("src", "dst", "port", "action", "since", "limit", "cursor")
    vpc = find(ctx, VPC, vpc_id)
    limit, _ = paging(request.args)
    before = whole(request.args, "cursor", 0, low=0, high=2**62)
    port = whole(request.args, "port", -1, low=0, high=65_535)
    action = request.args.get("action", "")
    if action not in ("", "accept", "reject"):
        raise InvalidRequest.fields({"action": ["must be accept or reject."]})
    query = select(FlowRecord).where(FlowRecord.vpc_id == vpc.id)
    for name, column in (("src", FlowRecord.source), ("dst", FlowRecord.destination)):
        if value := request.args.get(name, ""):
            query = query.where(column == value.replace("\x00", ""))
    query = query.where(FlowRecord.destination_port == port) if port >= 0 else query
    since = moment(request.args, "since")
    query = query.where(FlowRecord.at >= since) if since is not None else query
    query = query.where(FlowRecord.is_accepted.is_(action == "accept")) if action else query
    query = query.where(FlowRecord.id < before) if before else query
    rows = ctx.db.scalars(query.order_by(FlowRecord.id.desc()).limit(limit)).all()
    following = link(str(rows[-1].id)) if len(rows) == limit else None
    return io.answer(io.page_of([_flow(row) for row in rows], count=len(rows), following=following))


def _flow(row: FlowRecord) -> dict[str, Any]:
    return {
        "at": io.moment(row.at), "action": "accept" if row.is_accepted else "reject", "protocol": row.protocol, "src": row.source, "src_port": row.source_port,
        "dst": row.destination, "dst_port": row.destination_port, "bytes": row.size_bytes,
    }  # fmt: skip


def topology(vpc_id: str) -> ResponseReturnValue:
    """Nodes and edges."""
    ctx = context()
    found = topology_of(ctx, find(ctx, VPC, vpc_id))
    return io.answer({"nodes": [asdict(node) for node in found.nodes], "edges": [asdict(edge) for edge in found.edges], "hidden": found.hidden})


def ip_allocations(vpc_id: str) -> ResponseReturnValue:
    """Addresses of a VPC."""
    ctx = context()
    only("subnet_id")
    vpc = find(ctx, VPC, vpc_id)
    sight = sight_of(ctx, [vpc.id])
    rows, totals = allocations_of(ctx, vpc, subnet_id=request.args.get("subnet_id", "").replace("\x00", ""))
    return io.answer({"count": len(rows), "totals": totals, "results": [_allocation(row, sight) for row in rows]})


def _allocation(row: IpAllocation, sight: Sight = WHOLE) -> dict[str, Any]:
    held_by, description = (row.resource_id, row.description) if sight.sees(row.resource_id) else ("", UNSEEN)
    return {
        "allocation_id": row.id, "ip": row.address, "subnet_id": row.subnet_id, "resource_type": row.resource_type, "resource_id": held_by,
        "description": description, "state": "allocated" if row.resource_id else "reserved", "allocated_at": io.moment(row.allocated_at),
    }  # fmt: skip


# -- subnets -----------------------------------------------------------------------------------------------------------------------------------


def _of_subnets() -> Iterator[Endpoint]:
    yield _on(SUBNET, "PUT /tier", "tier", _same(subnet_set_tier, SUBNET), "Say what the subnet is meant for", answers={200: ref("Subnet")}, refuses=(409, 412),
              body=_body(subnet_set_tier), if_match=True)  # fmt: skip
    yield _on(SUBNET, "POST /ip-allocations", "ip-allocations.create", reserve, "Reserve an address", answers={201: ALLOCATION}, refuses=(409,),
              body=_body(subnet_reserve_address),
              body_required=False)  # fmt: skip
    yield _on(
        SUBNET, "DELETE /ip-allocations/{ip}", "ip-allocations.delete", unreserve, "Release a reserved address", answers={204: None}, refuses=(409,)
    )


def reserve(subnet_id: str) -> ResponseReturnValue:
    """Keep an address."""
    ctx = context()
    outcome = _run(subnet_reserve_address, subnet_id)
    row = ctx.db.get(IpAllocation, outcome.part)
    return io.answer(_allocation(_still(row)), 201)


def unreserve(subnet_id: str, ip: str) -> ResponseReturnValue:
    """Let an address go."""
    run(context(), subnet_release_address, subnet_id, {"ip": ip[:15]})
    return io.empty()


# -- security groups -----------------------------------------------------------------------------------------------------------------------------


def _of_groups() -> Iterator[Endpoint]:
    rules = list_schema(RULE)
    direction = Query("direction", "Only of this direction.", {"type": "string", "enum": ["ingress", "egress"]})
    yield _on(SECURITY_GROUP, "GET /rules", "rules.list", rules_of, "Rules, each with what it says", answers={200: rules}, query=[direction])
    add = _body(security_group_add_rule)
    yield _on(SECURITY_GROUP, "POST /rules", "rules.create", partial(add_rule, {}), "Add a rule", answers={201: RULE}, refuses=(409,), body=add)
    yield _on(SECURITY_GROUP, "POST /authorize-ingress", "authorize-ingress", partial(add_rule, {"direction": "ingress"}), "Add a rule for what comes in",
              answers={201: RULE}, refuses=(409,), body=_body(security_group_add_rule, "direction"))  # fmt: skip
    change = _body(security_group_update_rule, "rule_id")
    yield _on(
        SECURITY_GROUP,
        "PATCH /rules/{rule_id}",
        "rules.update",
        change_rule,
        "Change a rule or switch it off",
        answers={200: RULE},
        refuses=(409,),
        body=change,
    )
    yield _on(SECURITY_GROUP, "DELETE /rules/{rule_id}", "rules.delete", drop_rule, "Remove a rule", answers={204: None}, refuses=(409,))
    yield _on(SECURITY_GROUP, "POST /evaluate", "evaluate", evaluate_rules, "Would the group let this through", answers={200: EVALUATION},
              body=EvaluateInput.model_json_schema())  # fmt: skip
    paths = ("/api/networking/security-group-templates", "/api/v1/services/security-group-templates", "/api/v1/services/security_group_templates")
    yield Endpoint("GET", "/networking/security-group-templates", "networking.security-group-templates", templates, "Rules by name", "Security groups",
                   answers={200: list_schema(TEMPLATE)}, aliases=paths)  # fmt: skip


def rules_of(security_group_id: str) -> ResponseReturnValue:
    """Rules of a group."""
    ctx = context()
    only("direction")
    wanted = request.args.get("direction", "")
    if wanted not in ("", "ingress", "egress"):
        raise InvalidRequest.fields({"direction": ["must be ingress or egress."]})
    group = find(ctx, SECURITY_GROUP, security_group_id)
    found = [_rule(rule) for rule in rules_shown(ctx, group) if wanted in ("", rule["direction"])]
    return io.answer(io.page_of(found, count=len(found)))


def _rule(shown: Mapping[str, Any]) -> dict[str, Any]:
    return {**shown, "created_at": io.moment(shown["created_at"]), "connections_read_at": io.moment(shown["connections_read_at"])}


def add_rule(fixed: Mapping[str, str], security_group_id: str) -> ResponseReturnValue:
    """A new rule."""
    outcome = _run(security_group_add_rule, security_group_id, **fixed)
    made = (each for each in rules_shown(context(), outcome.row) if each["rule_id"] == outcome.part)
    return io.answer(_rule(_still(next(made, None))), 201)


def change_rule(security_group_id: str, rule_id: str) -> ResponseReturnValue:
    """A changed rule."""
    outcome = _run(security_group_update_rule, security_group_id, rule_id=rule_id)
    changed = (each for each in rules_shown(context(), outcome.row) if each["rule_id"] == rule_id)
    return io.answer(_rule(_still(next(changed, None))))


def drop_rule(security_group_id: str, rule_id: str) -> ResponseReturnValue:
    """One rule fewer."""
    run(context(), security_group_remove_rule, security_group_id, {"rule_id": rule_id[:64]})
    return io.empty()


def evaluate_rules(security_group_id: str) -> ResponseReturnValue:
    """Would it pass."""
    ctx, asked = context(), read(EvaluateInput)
    group = find(ctx, SECURITY_GROUP, security_group_id)
    packet = Packet(Direction(asked.direction), asked.protocol, asked.port, asked.peer)
    rule, text = evaluate(ctx, group, packet, group_names(ctx, group))
    return io.answer({"allowed": rule is not None, "rule_id": rule.rule_id if rule else None, "sentence": text})


def templates() -> ResponseReturnValue:
    """Rules by name."""
    found = [{"name": each.name, "label": each.label, "rules": [_template_rule(rule) for rule in each.rules]} for each in TEMPLATES.values()]
    return io.answer(io.page_of(found, count=len(found)))


def _template_rule(rule: RuleSpec) -> dict[str, Any]:
    return {
        "direction": rule.direction.value, "protocol": rule.protocol.value, "from_port": rule.from_port, "to_port": rule.to_port, "icmp_type": rule.icmp_type,
        "text": what(rule),
    }  # fmt: skip


# -- routes --------------------------------------------------------------------------------------------------------------------------------------


def _of_routes() -> Iterator[Endpoint]:
    yield _on(ROUTE_TABLE, "GET /routes", "routes.list", routes_of, "Routes, the VPC's own first", answers={200: list_schema(ROUTE)})
    yield _on(
        ROUTE_TABLE,
        "POST /routes",
        "routes.create",
        add_route,
        "Add a route",
        answers={201: ROUTE},
        refuses=(409,),
        body=_body(route_table_add_route),
    )
    yield _on(ROUTE_TABLE, "DELETE /routes/{route_id}", "routes.delete", drop_route, "Remove a route", answers={204: None}, refuses=(409,))
    yield _on(ROUTE_TABLE, "PUT /default-route", "default-route", default_route, "Set what 0.0.0.0/0 leads to", answers={200: ROUTE}, refuses=(409,),
              body=_body(route_table_set_default_route))  # fmt: skip
    for op, name in ((route_table_associate, "associate-subnet"), (route_table_disassociate, "disassociate-subnet")):
        yield _on(
            ROUTE_TABLE,
            f"POST /{name}",
            name,
            _same(op, ROUTE_TABLE),
            f"The same as {op.verb}",
            answers={200: ref("RouteTable")},
            refuses=(409,),
            body=_body(op),
        )


def routes_of(route_table_id: str) -> ResponseReturnValue:
    """Routes of a table."""
    ctx = context()
    table = find(ctx, ROUTE_TABLE, route_table_id)
    alive = live_targets(ctx, table)
    local = {"route_id": "local", "destination_cidr": table.vpc.cidr_block, "target_type": "local", "target_id": "", "status": "active"}
    found = [{**local, "created_at": io.moment(table.created_at)}, *(_route(each, alive) for each in table.routes)]
    return io.answer(io.page_of(found, count=len(found)))


def _route(route: Route, alive: set[str]) -> dict[str, Any]:
    return {
        "route_id": route.id, "destination_cidr": route.destination_cidr, "target_type": route.target_type, "target_id": route.target_id,
        "status": "active" if route.target_id in alive else "blackhole", "created_at": io.moment(route.created_at),
    }  # fmt: skip


def add_route(route_table_id: str) -> ResponseReturnValue:
    """A new route."""
    outcome = _run(route_table_add_route, route_table_id)
    routes: list[Route] = outcome.row.routes
    route = _still(next((each for each in routes if each.id == outcome.part), None))
    return io.answer(_route(route, {route.target_id}), 201)


def drop_route(route_table_id: str, route_id: str) -> ResponseReturnValue:
    """One route fewer."""
    run(context(), route_table_remove_route, route_table_id, {"route": route_id[:64]})
    return io.empty()


def default_route(route_table_id: str) -> ResponseReturnValue:
    """The default route."""
    outcome = _run(route_table_set_default_route, route_table_id)
    route = _still(next((each for each in outcome.row.routes if each.destination_cidr == "0.0.0.0/0"), None))
    return io.answer(_route(route, {route.target_id}))


def reachability() -> ResponseReturnValue:
    """Who reaches whom."""
    ctx, asked = context(), read(ReachInput)
    return io.answer(asdict(reach(ctx, asked.source, asked.target, asked.protocol, asked.port)))
