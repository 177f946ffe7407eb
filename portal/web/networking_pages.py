"""What networking shows besides the derived pages: the drawing of a VPC, its addresses and flows, rules, routes, and who reaches whom."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue
from sqlalchemy import select

from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel.authz import reach as may_see
from portal.kernel.context import Context
from portal.kernel.errors import PortalError
from portal.networking.changes import wrong
from portal.networking.dns_names import name_of
from portal.networking.models import FlowRecord, NetworkInterface, Route, RouteTable, SecurityGroup, SecurityGroupRule, Vpc
from portal.networking.reachability import Answer
from portal.networking.routes import ROUTE_TABLE, live_targets, route_table_add_route
from portal.networking.security_groups import SECURITY_GROUP, rule_shown
from portal.networking.sight import sight_of
from portal.networking.view import group_names, names_in, reach, topology_of
from portal.web import address_map, rule_form
from portal.web.derived import Tab, base_of, why_not
from portal.web.page import field_errors, form_status, render
from portal.web.topology import PAGES, WIDTH, draw

pages = Blueprint("networking", __name__)
FIELDS = ("source", "target", "protocol", "port")
PROTOCOLS = ("tcp", "udp", "icmp")
RECENT = 100


def _topology(ctx: Context, vpc: Vpc) -> Mapping[str, Any]:
    found = topology_of(ctx, vpc)
    instance = ctx.registry.of(ctx.registry.model("compute.instance"))

    def tone(state: str) -> str:
        return instance.lifecycle.tone(state) if state and instance.lifecycle else ""

    return {"drawing": draw(found, tone) if found.nodes else None, "width": WIDTH, "view": request.args.get("view", "")}


def _flows(ctx: Context, vpc: Vpc) -> Mapping[str, Any]:
    rows = ctx.db.scalars(select(FlowRecord).where(FlowRecord.vpc_id == vpc.id).order_by(FlowRecord.id.desc()).limit(RECENT)).all()
    return {"flows": rows}


def _routes(ctx: Context, table: RouteTable) -> Mapping[str, Any]:
    alive, names = live_targets(ctx, table), names_in(ctx, [table.vpc_id])
    routes: Sequence[Route] = table.routes
    shown = [
        (route, route.target_id in alive, names.get(route.target_id, route.target_id), f"{PAGES[route.target_type]}/{route.target_id}")
        for route in routes
    ]
    return {"routes": shown, "why_not": why_not(ctx, ROUTE_TABLE, route_table_add_route, table)}


def _of_instance(ctx: Context, instance: Any) -> Mapping[str, Any]:
    query = select(NetworkInterface).where(NetworkInterface.instance_id == instance.id, NetworkInterface.deleted_at.is_(None))
    rtype = ctx.registry.of(NetworkInterface)
    visible = query.where(may_see(ctx, f"{rtype.key}.read").rows(NetworkInterface)).options(*rtype.eager())
    interfaces = ctx.db.scalars(visible.order_by(NetworkInterface.is_primary.desc(), NetworkInterface.id)).unique().all()
    sight = sight_of(ctx, [row.vpc_id for row in interfaces])
    groups = {each.group_id: each.group for row in interfaces for each in row.memberships if sight.sees(each.group_id)}
    rules: dict[str, list[tuple[SecurityGroup, Mapping[str, Any]]]] = {"ingress": [], "egress": []}
    for group in sorted(groups.values(), key=lambda each: each.name):
        names = group_names(ctx, group)
        for rule in group.rules:
            if rule.is_enabled:
                rules[rule.direction].append((group, rule_shown(rule, names)))
    first = next((row for row in interfaces if row.is_primary), None)
    name = name_of(ctx.db, ctx.registry, first.vpc, instance.id) if first is not None else ""
    return {"interfaces": interfaces, "rules": rules, "dns_name": name}


TABS: dict[str, Sequence[Tab]] = {
    "networking.vpc": (Tab("topology", "Topology", "topology.html", _topology), Tab("flows", "Flow log", "flows.html", _flows)),
    "networking.subnet": (Tab("addresses", "Addresses", "addresses.html", address_map.tab),),
    "networking.security_group": (Tab("rules", "Rules", "rules.html", rule_form.tab),),
    "networking.route_table": (Tab("routes", "Routes", "routes.html", _routes),),
}
OF_INSTANCE = Tab("network", "Network", "network.html", _of_instance)


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the way as the page shows it; what decides stands out, and where it ends it has failed."""

    kind: str
    text: str
    url: str
    is_decider: bool = False
    has_failed: bool = False


@pages.get("/networking/reachability")
@access(Access.SIGNED_IN)
def reachability() -> ResponseReturnValue:
    """Can one reach the other. The question stands in the address, so that the answer can be sent to somebody."""
    ctx = context()
    given = {name: request.args.get(name, "").replace("\x00", "").strip()[:255] for name in FIELDS}
    given["protocol"] = given["protocol"] if given["protocol"] in PROTOCOLS else "tcp"
    values: dict[str, Any] = {"given": given, "answer": None, "errors": {}, "message": "", "protocols": PROTOCOLS, "places": _places(ctx)}
    status = 200
    try:
        if given["source"] and given["target"]:
            number = _number(given["port"])
            answer = reach(ctx, given["source"], given["target"], given["protocol"], number)
            body = {
                "source": given["source"],
                "target": given["target"],
                "protocol": given["protocol"],
                **({} if number is None else {"port": number}),
            }
            values |= {"answer": answer, "steps": _steps(ctx, answer), "asked": json.dumps(body, ensure_ascii=False)}
    except PortalError as error:
        ctx.db.rollback()
        values["errors"], values["message"] = field_errors(error, FIELDS)
        status = form_status(error)
    return render("networking/reachability.html", status, **values)


def _number(text: str) -> int | None:
    """A port as it was typed. Raises InvalidRequest."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):  # noqa: PLR2004 - what is too large is told by the answer
        raise wrong("port", f"must be a number from 0 to 65535, not {text[:40]}.")
    return int(text)


def _places(ctx: Context) -> Sequence[str]:
    """Names of instances to choose from."""
    model = ctx.registry.model("compute.instance")
    mine = (model.project_id == ctx.project_id, model.deleted_at.is_(None), may_see(ctx, "compute.instance.read").rows(model))
    return ctx.db.scalars(select(model.name).where(*mine).order_by(model.name).limit(RECENT)).all()


def _steps(ctx: Context, answer: Answer) -> list[Step]:
    ids = {hop.id for hop in answer.hops} | {answer.decider_id}
    query = select(SecurityGroupRule.id, SecurityGroupRule.group_id).where(SecurityGroupRule.id.in_(ids))
    urls = {rule_id: f"{base_of(SECURITY_GROUP)}/{group_id}/rules#{rule_id}" for rule_id, group_id in ctx.db.execute(query)}
    pages_of = {rtype.prefix: base_of(rtype) for rtype in ctx.registry if rtype.service == "networking"}
    for some_id in ids - set(urls):
        if (base := pages_of.get(some_id.partition("-")[0])) is not None:
            urls[some_id] = f"{base}/{some_id}"
    steps = [
        Step(hop.kind, hop.text, urls.get(hop.id, ""), is_decider=answer.allowed and hop.kind == answer.decided_by and hop.id == answer.decider_id)
        for hop in answer.hops
    ]
    why = answer.sentence.partition(": ")[2] or answer.sentence
    return steps if answer.allowed else [*steps, Step(answer.decided_by, why, urls.get(answer.decider_id, ""), is_decider=True, has_failed=True)]
