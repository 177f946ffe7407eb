"""Everything that is wrong with a network, asked for in the API and in the console: one and the same sentence that names the cause, nothing half-made."""

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy.orm import Session, sessionmaker

from tests.support.draining import TestWorker
from tests.support.effects import rows_of
from tests.support.web import Api, csrf_of

WORLD = "0.0.0.0/0"


@dataclass(frozen=True)
class Wrong:
    """One thing that is wrong: what is asked for (`SUBNET` and the like stand for ids), and what is said of which field."""

    what: str
    collection: str
    data: dict[str, Any]
    status: int
    field: str
    says: str
    target: str = ""
    verb: str = ""
    # What forms send otherwise than programs.
    typed: dict[str, str] = field(default_factory=dict)


SUBNET = {"name": "x", "vpc": "VPC"}
RULE = {"direction": "ingress", "protocol": "tcp", "cidr": WORLD}
CARD = {"name": "x", "subnet": "SMALL"}
ROUTE = {"destination_cidr": WORLD, "target_type": "internet-gateway"}
BAD_INPUT = {
    "overlapping": [
        Wrong("overlapping subnets", "subnets", {**SUBNET, "cidr_block": "10.0.1.0/24"}, 409, "cidr_block",
              "overlaps the subnet 10.0.1.0/28; 10.0.0.0/24 is free"),
        Wrong("a subnet around another", "subnets", {**SUBNET, "cidr_block": "10.0.0.0/16"}, 409, "cidr_block", "no /16 is free in 10.0.0.0/16"),
    ],
    "outside": [
        Wrong("a subnet outside its VPC", "subnets", {**SUBNET, "cidr_block": "10.1.0.0/24"}, 400, "cidr_block", "lies outside the VPC's range 10.0.0.0/16"),
        Wrong("a subnet wider than its VPC", "subnets", {**SUBNET, "vpc": "OTHER", "cidr_block": "10.0.0.0/16"}, 400, "cidr_block", "lies outside"),
    ],
    "/33": [
        Wrong("a VPC of /33", "vpcs", {"name": "x", "cidr_block": "10.0.0.0/33"}, 400, "cidr_block", "has the prefix length /33; it goes from /0 to /32"),
        Wrong("a subnet of /33", "subnets", {**SUBNET, "cidr_block": "10.0.2.0/33"}, 400, "cidr_block", "/33"),
        Wrong("a rule about /33", "security-groups", {**RULE, "from_port": 80, "cidr": "10.0.0.0/33"}, 400, "cidr", "/33", "GROUP", "add_rule"),
        Wrong("a route to /33", "route-tables", {**ROUTE, "destination_cidr": "10.9.0.0/33"}, 400, "destination_cidr", "/33", "TABLE", "add_route"),
    ],
    "host bits": [
        Wrong("a VPC with host bits", "vpcs", {"name": "x", "cidr_block": "10.0.0.1/16"}, 400, "cidr_block", "did you mean 10.0.0.0/16?"),
        Wrong("a subnet with host bits", "subnets", {**SUBNET, "cidr_block": "10.0.2.5/24"}, 400, "cidr_block", "did you mean 10.0.2.0/24?"),
        Wrong("a rule with host bits", "security-groups", {**RULE, "from_port": 80, "cidr": "192.0.2.7/24"}, 400, "cidr", "did you mean 192.0.2.0/24?",
              "GROUP", "add_rule"),
        Wrong("a route with host bits", "route-tables", {**ROUTE, "destination_cidr": "192.0.2.7/24"}, 400, "destination_cidr", "did you mean", "TABLE", "add_route"),
    ],
    "IPv6 in place of IPv4": [
        Wrong("a VPC of IPv6", "vpcs", {"name": "x", "cidr_block": "fd00::/56"}, 400, "cidr_block", "is an IPv6 range; only IPv4"),
        Wrong("a subnet of IPv6", "subnets", {**SUBNET, "cidr_block": "fd00::/64"}, 400, "cidr_block", "is an IPv6 range; only IPv4"),
        Wrong("a rule about IPv6", "security-groups", {**RULE, "from_port": 80, "cidr": "::/0"}, 400, "cidr", "is an IPv6 range", "GROUP", "add_rule"),
        Wrong("an IPv6 address", "network-interfaces", {**CARD, "private_ip": "fd00::4"}, 400, "private_ip", "is an IPv6 address; only IPv4"),
        Wrong("an IPv6 reservation", "subnets", {"ip": "fd00::4"}, 400, "ip", "is an IPv6 address; only IPv4", "SMALL", "reserve_address"),
        Wrong("an IPv6 name server", "vpcs", {"name": "x", "cidr_block": "10.0.0.0/16", "dns_servers": "fd00::1"}, 400, "dns_servers", "is an IPv6 address"),
    ],
    "name servers that answer nobody": [
        Wrong(f"the name server {address}", "vpcs", {"name": "x", "cidr_block": "10.0.0.0/16", "dns_servers": f"9.9.9.9, {address}"}, 400, "dns_servers", says)
        for address, says in (("0.0.0.9", "means no host"), ("127.0.0.1", "is the asking host itself"), ("169.254.169.254", "is on nobody"),
                              ("224.0.0.1", "is a group of hosts"), ("255.255.255.255", "everybody"))
    ],
    "ports": [
        Wrong("port 70000", "security-groups", {**RULE, "from_port": 70_000}, 400, "from_port", "70000", "GROUP", "add_rule"),
        Wrong("port -1", "security-groups", {**RULE, "from_port": -1}, 400, "from_port", "-1", "GROUP", "add_rule"),
        Wrong("from above to", "security-groups", {**RULE, "from_port": 90, "to_port": 80}, 400, "to_port", "90 to 80", "GROUP", "add_rule"),
    ],
    "the same rule twice": [
        Wrong("a rule twice", "security-groups", {**RULE, "from_port": 22}, 409, "rule_id", "has this rule already", "GROUP", "add_rule"),
        Wrong("a rule twice, said otherwise", "security-groups", {**RULE, "from_port": 22, "to_port": 22, "description": "another"}, 409, "rule_id",
              "has this rule already", "GROUP", "add_rule"),
    ],
    "a group of another VPC": [
        Wrong("a rule with a group of another VPC", "security-groups", {"direction": "ingress", "protocol": "tcp", "from_port": 80, "referenced_group": "OTHERS"}, 400,
              "referenced_group", "other-default is a group of another VPC", "GROUP", "add_rule"),
        Wrong("an interface in a group of another VPC", "network-interfaces", {**CARD, "subnet": "FRONT", "security_groups": ["OTHERS"]}, 400, "security_groups",
              "other-default is a group of another VPC", typed={"security_groups": "OTHERS"}),
        Wrong("groups of another VPC", "network-interfaces", {"security_groups": ["OTHERS"]}, 400, "security_groups", "other-default is a group of another VPC",
              "CARD", "set_security_groups", typed={"security_groups": "OTHERS"}),
        Wrong("an instance in a group of another VPC", "instances", {"name": "x", "flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": "FRONT",
              "security_groups": ["OTHERS"]}, 400, "security_groups", "other-default is a group of another VPC", typed={"security_groups": "OTHERS", "count": "1"}),
    ],
    "the last address": [
        Wrong("the last address", "network-interfaces", CARD, 409, "subnet_id", "has no free address: 11 of 11 are taken"),
        Wrong("the last address for an instance", "instances", {"name": "x", "flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": "SMALL"}, 409, "subnet_id",
              "has 0 free addresses, 1 are needed", typed={"count": "1"}),
        Wrong("the last address kept", "subnets", {}, 409, "subnet_id", "has no free address", "SMALL", "reserve_address"),
    ],
    "an address in use": [
        Wrong("an address in use", "network-interfaces", {**CARD, "private_ip": "10.0.1.5"}, 409, "private_ip", "10.0.1.5 is in use already"),
        Wrong("an address kept", "network-interfaces", {**CARD, "subnet": "FRONT", "private_ip": "10.0.5.9"}, 409, "private_ip", "10.0.5.9 is in use already"),
        Wrong("an address in use, kept", "subnets", {"ip": "10.0.1.5"}, 409, "ip", "10.0.1.5 is in use already", "SMALL", "reserve_address"),
        Wrong("an address of an instance", "instances", {"name": "x", "flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": "FRONT", "private_ip": "10.0.5.9"},
              409, "private_ip", "10.0.5.9 is in use already", typed={"count": "1"}),
    ],
    "in use": [
        Wrong("a VPC in use", "vpcs", {}, 409, "in_the_way", "net is in use: network interface card, subnet front, subnet small", "VPC", "delete", typed={"confirm": "net"}),
        Wrong("a VPC with instances", "vpcs", {"force": True}, 409, "in_the_way", "full is in use: instance web. Terminate the instances first.", "FULL", "delete",
              typed={"force": "y", "confirm": "full"}),
        Wrong("a subnet in use", "subnets", {}, 409, "in_the_way", "front is in use by 10.0.5.9", "FRONT", "delete", typed={"confirm": "front"}),
    ],
    "a route to nowhere": [
        *(Wrong(f"a route to {away}", "route-tables", {**ROUTE, "destination_cidr": away}, 400, "destination_cidr", "nothing is routed there", "TABLE", "add_route")
          for away in ("127.0.0.0/8", "169.254.169.254/32", "224.0.0.0/4", "240.0.0.0/5", "0.0.0.0/8")),
        Wrong("a route to no gateway", "route-tables", ROUTE, 400, "target_id", "net has no internet gateway: the route would lead nowhere", "TABLE", "add_route"),
        Wrong("a route to what is not there", "route-tables", {"destination_cidr": WORLD, "target_type": "nat-gateway", "target_id": "nat-nope"}, 400, "target_id",
              "the route would lead nowhere", "TABLE", "add_route"),
        Wrong("a route to nothing named", "route-tables", {"destination_cidr": WORLD, "target_type": "nat-gateway"}, 400, "target_id", "is required", "TABLE", "add_route"),
        Wrong("a default route to no gateway", "route-tables", {"target_type": "internet-gateway"}, 400, "target_id", "nowhere", "TABLE", "set_default_route"),
        Wrong("a route to an interface of another VPC", "route-tables", {"destination_cidr": WORLD, "target_type": "network-interface", "target_id": "OTHER-CARD"}, 400,
              "target_id", "nowhere", "TABLE", "add_route"),
        Wrong("a table with a route to nowhere", "route-tables", {"name": "x", "vpc": "FULL", "routes": [ROUTE, {"destination_cidr": "10.9.0.0/16",
              "target_type": "nat-gateway", "target_id": "nat-nope"}]}, 400, "routes", "1.target_id: full has no NAT gateway nat-nope: the route would lead nowhere",
              typed={"routes": f"{WORLD} internet-gateway\n10.9.0.0/16 nat-gateway nat-nope"}),
        Wrong("a table with the same route twice", "route-tables", {"name": "x", "vpc": "FULL", "routes": [ROUTE, ROUTE]}, 409, "routes", "x has a route for 0.0.0.0/0",
              typed={"routes": f"{WORLD} internet-gateway\n{WORLD} internet-gateway"}),
        Wrong("a table with no route at all", "route-tables", {"name": "x", "vpc": "FULL", "routes": [{"destination_cidr": WORLD}]}, 400, "routes", "0.target_type",
              typed={"routes": WORLD}),
    ],
    "peerings": [
        Wrong("a peering with overlap", "vpc-peerings", {"name": "x", "vpc": "VPC", "peer_vpc": "OTHER"}, 400, "peer_vpc",
              "other (10.0.0.0/20) overlaps net (10.0.0.0/16): an address would be in both"),
        Wrong("a peering with itself", "vpc-peerings", {"name": "x", "vpc": "VPC", "peer_vpc": "VPC"}, 400, "peer_vpc", "is the VPC itself"),
        Wrong("a peering with nothing", "vpc-peerings", {"name": "x", "vpc": "VPC", "peer_vpc": "vpc-nope"}, 400, "peer_vpc", "There is no VPC vpc-nope here"),
    ],
}  # fmt: skip


@pytest.fixture
def ids(api: Api, worker: TestWorker) -> dict[str, str]:
    """A VPC with a full subnet and one with a kept address, another with an overlapping range, and a third with an instance."""

    def made(path: str, **body: Any) -> dict[str, Any]:
        answer = api.post(f"/networking/{path}", body)
        assert answer.status_code in {201, 202}, answer.json
        found: dict[str, Any] = answer.json
        return found

    vpc, other, full = (
        made("vpcs", name=name, cidr_block=cidr) for name, cidr in (("net", "10.0.0.0/16"), ("other", "10.0.0.0/20"), ("full", "10.2.0.0/16"))
    )
    small, front = (made("subnets", name=name, vpc="net", cidr_block=cidr) for name, cidr in (("small", "10.0.1.0/28"), ("front", "10.0.5.0/24")))
    made("subnets", name="others", vpc="other", cidr_block="10.0.0.0/24")
    made("subnets", name="inside", vpc="full", cidr_block="10.2.1.0/24")
    made("internet-gateways", name="igw", vpc="full")
    assert api.post("/compute/instances", {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": "inside"}).status_code == 202
    made(f"subnets/{front['id']}/ip-allocations", ip="10.0.5.9")
    card = made("network-interfaces", name="card", subnet="small")
    for _ in range(10):
        made(f"subnets/{small['id']}/ip-allocations")
    far = made("network-interfaces", name="far", subnet="others")
    worker.drain()
    vpc, other = (api.get(f"/networking/vpcs/{each['id']}").json for each in (vpc, other))
    made(f"security-groups/{vpc['default_group_id']}/rules", from_port=22, cidr=WORLD)
    worker.drain()
    return {
        "VPC": vpc["id"], "OTHER": other["id"], "FULL": full["id"], "SMALL": small["id"], "FRONT": front["id"], "GROUP": vpc["default_group_id"],
        "TABLE": vpc["main_route_table_id"], "OTHERS": other["default_group_id"], "CARD": card["id"], "OTHER-CARD": far["id"],
    }  # fmt: skip


def filled(value: Any, ids: dict[str, str]) -> Any:
    """With ids in place of what stands for them."""
    if isinstance(value, dict):
        return {key: filled(each, ids) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, ids) for each in value]
    return ids.get(value, value) if isinstance(value, str) else value


def service_of(case: Wrong) -> str:
    return f"/{'compute' if case.collection == 'instances' else 'networking'}/{case.collection}"


@pytest.mark.parametrize("item", BAD_INPUT)
def test_what_is_wrong_is_refused_with_the_same_words_everywhere(
    api: Api, client_for: Callable[..., FlaskClient], ids: dict[str, str], database: sessionmaker[Session], item: str
) -> None:
    browser = client_for()
    token, before = csrf_of(browser.get("/networking/vpcs")), rows_of(database)
    for case in BAD_INPUT[item]:
        data = filled(case.data, ids)
        answer = by_program(api, case, ids, data)
        assert (answer.status_code, answer.json["error"]) == (case.status, {400: "INVALID_REQUEST", 409: "CONFLICT"}[case.status]), (
            case,
            answer.json,
        )
        assert case.field in answer.json["details"], (case, answer.json)
        assert case.says.lower() in answer.json["message"].lower(), (case, answer.json)
        typed = {name: str(value) for name, value in {**data, **filled(case.typed, ids)}.items()}
        page = browser.post(
            service_of(case) + (f"/{ids[case.target]}/actions/{case.verb}" if case.target else "/new"), data={**typed, "csrf_token": token}
        )
        shown = html.unescape(page.text)
        assert page.status_code == {400: 422}.get(case.status, case.status), (case, shown)
        assert case.says.lower() in shown.lower(), (case, shown)
        assert rows_of(database) == before, case


def by_program(api: Api, case: Wrong, ids: dict[str, str], data: dict[str, Any]) -> Any:
    """The answer of the API."""
    path = service_of(case) + (f"/{ids[case.target]}" if case.target else "")
    if case.verb == "delete":
        return api("DELETE", path + ("?force=true" if data.get("force") else ""))
    return api.post(path + (f"/{case.verb.replace('_', '-')}" if case.verb else ""), data)
