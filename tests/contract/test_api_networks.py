"""The API of networks: what is special about it, and what it refuses that forms cannot send; test_network_refusals.py has the rest."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel.db import transaction
from portal.networking.models import FlowRecord
from tests.support.draining import TestWorker
from tests.support.effects import rows_of
from tests.support.web import Api, csrf_of

WORLD = "0.0.0.0/0"


@pytest.fixture
def vpc(api: Api, worker: TestWorker) -> dict[str, Any]:
    """A VPC 10.0.0.0/16 named net with the subnet 10.0.1.0/28 named small, and another VPC named other."""
    made = api.post("/networking/vpcs", {"name": "net", "cidr_block": "10.0.0.0/16"})
    assert (made.status_code, made.json["state"], bool(made.json["job_id"])) == (202, "pending", True)
    assert api.post(f"/networking/vpcs/{made.json['vpc_id']}/subnets", {"name": "small", "cidr_block": "10.0.1.0/28"}).status_code == 201
    assert api.post("/networking/vpcs", {"name": "other", "cidr_block": "10.0.0.0/20"}).status_code == 202
    assert api.post("/networking/subnets", {"name": "others", "vpc": "other", "cidr_block": "10.0.0.0/24"}).status_code == 201
    worker.drain()
    found: dict[str, Any] = api.get(f"/networking/vpcs/{made.json['vpc_id']}").json
    return found


def group_of(api: Api, vpc: dict[str, Any]) -> str:
    return f"/networking/security-groups/{vpc['default_group_id']}"


REFUSED = [
    ("/networking/vpcs", {"name": "x", "cidr_block": "8.8.0.0/16"}, 400, "cidr_block", "not private"),
    ("/networking/vpcs", {"name": "x", "cidr_block": "10.0.0.0/8"}, 400, "cidr_block", "/8"),
    ("/networking/vpcs", {"name": "net", "cidr_block": "10.0.0.0/16"}, 409, "name", "taken"),
    ("/networking/vpcs", {"name": "x", "cidr_block": "10.0.0.0/16", "dns_servers": "1.1.1.1, x"}, 400, "dns_servers", "IPv4 address"),
    ("/networking/subnets", {"name": "x", "vpc": "nope", "cidr_block": "10.0.2.0/24"}, 400, "vpc", "no VPC nope"),
    ("GROUP/rules", {"from_port": 80}, 400, "cidr", "exactly one"),
    ("GROUP/rules", {"from_port": 80, "referenced_sg_id": "nope"}, 400, "referenced_group", "no security group"),
    ("GROUP/authorize-ingress", {"direction": "egress", "from_port": 1, "cidr": WORLD}, 400, "direction", "path"),
    ("GROUP/apply-template", {"template": "ssh", "allowed_source": "10.0.0.1/8"}, 400, "allowed_source", "did you mean"),
    ("GROUP/evaluate", {"peer": "10.0.0.300", "port": 80}, 400, "peer", "IPv4"),
    ("GROUP/evaluate", {"peer": "10.0.0.3"}, 400, "port", "required"),
    ("TABLE/routes", {"destination_cidr": "10.0.3.0/24", "target_type": "internet-gateway"}, 400, "destination_cidr", "always routed within"),
    ("TABLE/routes", {"destination_cidr": "10.9.0.0", "target_type": "internet-gateway"}, 400, "destination_cidr", "such as"),
    ("TABLE/associate", {"subnet": "others"}, 400, "subnet", "another VPC"),
    ("/networking/nat-gateways", {"name": "x", "subnet": "small"}, 400, "subnet", "not public"),
    ("/networking/network-interfaces", {"name": "x", "subnet": "small", "private_ip": "10.0.1.1"}, 400, "private_ip", "router"),
    ("/networking/reachability", {"source": "10.0.1.4", "target": "the moon", "port": 80}, 400, "target", "no network interface"),
    ("/networking/reachability", {"source": "10.0.1.4", "target": "internet"}, 400, "port", "required"),
]


@pytest.mark.parametrize("refusal", REFUSED, ids=[f"{n}-{each[3]}" for n, each in enumerate(REFUSED)])
def test_what_is_refused_says_why_and_changes_nothing(
    api: Api, vpc: dict[str, Any], database: sessionmaker[Session], refusal: tuple[str, dict[str, Any], int, str, str]
) -> None:
    path, body, status, field, says = refusal
    assert api.post("/networking/subnets/small/ip-allocations", {}).status_code == 404
    subnet = api.get(f"/networking/vpcs/{vpc['id']}/subnets").json["results"][0]["id"]
    assert api.post(f"/networking/subnets/{subnet}/ip-allocations", {"ip": "10.0.1.4"}).status_code == 201
    before = rows_of(database)
    path = path.replace("GROUP", group_of(api, vpc)).replace("TABLE", f"/networking/route-tables/{vpc['main_route_table_id']}")
    answer = api.post(path, body)
    assert answer.status_code == status, answer.json
    assert field in answer.json["details"]
    assert says.lower() in answer.json["message"].lower()
    assert rows_of(database) == before


def test_the_last_address(api: Api, vpc: dict[str, Any]) -> None:
    for number in range(11):
        assert api.post("/networking/network-interfaces", {"name": f"n{number}", "subnet": "small"}).status_code == 201
    full = api.post("/networking/network-interfaces", {"name": "n11", "subnet": "small"})
    assert (full.status_code, full.json["details"]["used"]) == (409, 11)
    assert "no free address: 11 of 11 are taken" in full.json["message"]
    subnet = api.get(f"/networking/vpcs/{vpc['id']}/subnets").json["results"][0]
    assert subnet["available_ip_count"] == 0
    found = api.get(f"/networking/vpcs/{vpc['id']}/ip-allocations").json
    assert found["totals"] == {"total": 16, "usable": 11, "allocated": 11, "free": 0}
    one = api.get("/networking/network-interfaces?search=n3").json["results"][0]["eni_id"]
    assert api("DELETE", f"/networking/network-interfaces/{one}").status_code == 204
    again = api.post("/networking/network-interfaces", {"name": "again", "subnet": "small"})
    assert again.json["private_ip"] == "10.0.1.7"


def test_reserved_addresses_come_and_go(api: Api, vpc: dict[str, Any]) -> None:
    subnet = api.get(f"/networking/subnets?vpc={vpc['id']}").json["results"][0]["id"]
    made = api.post(f"/networking/subnets/{subnet}/ip-allocations", {"description": "printer"})
    assert (made.status_code, made.json["ip"], made.json["state"]) == (201, "10.0.1.4", "reserved")
    busy = api("DELETE", f"/networking/subnets/{subnet}")
    assert (busy.status_code, busy.json["details"]["in_the_way"]) == (409, ["10.0.1.4"])
    assert api("DELETE", f"/networking/subnets/{subnet}/ip-allocations/10.0.1.4").status_code == 204
    assert api("DELETE", f"/networking/subnets/{subnet}/ip-allocations/10.0.1.4").status_code == 404
    assert api("DELETE", f"/networking/subnets/{subnet}").status_code == 204


def test_rules_one_by_one(api: Api, vpc: dict[str, Any], worker: TestWorker) -> None:
    path = group_of(api, vpc)
    made = api.post(f"{path}/authorize-ingress", {"from_port": 22, "cidr": WORLD, "description": "for now"})
    assert (made.status_code, made.json["to_port"], made.json["sentence"]) == (201, 22, "Lets SSH (TCP port 22) in from anywhere.")
    assert "SSH" in made.json["warning"]
    assert api.get(path).json["status"] == "applying"
    worker.drain()
    assert api.get(path).json["status"] == "available"
    rule = f"{path}/rules/{made.json['rule_id']}"
    changed = api("PATCH", rule, {"cidr": "192.0.2.0/24", "is_enabled": False})
    assert (changed.json["cidr"], changed.json["is_enabled"], changed.json["warning"]) == ("192.0.2.0/24", False, "")
    assert api.post(f"{path}/evaluate", {"port": 22, "peer": "192.0.2.7"}).json["allowed"] is False
    api("PATCH", rule, {"is_enabled": True})
    passed = api.post(f"{path}/evaluate", {"port": 22, "peer": "192.0.2.7"}).json
    assert passed == {"allowed": True, "rule_id": made.json["rule_id"], "sentence": "Lets SSH (TCP port 22) in from 192.0.2.0/24."}
    assert api("DELETE", rule).status_code == 204
    assert api("DELETE", rule).status_code == 404
    assert api.post(f"{path}/apply-template", {"template": "web", "allowed_source": WORLD}).status_code == 200
    assert len(api.get(f"{path}/rules?direction=ingress").json["results"]) == 3
    assert len(api.get("/networking/security-group-templates").json["results"]) >= 8
    assert api("DELETE", path).status_code == 409


def test_routes_one_by_one(api: Api, vpc: dict[str, Any], worker: TestWorker) -> None:
    table = f"/networking/route-tables/{vpc['main_route_table_id']}"
    gateway = api.post("/networking/internet-gateways", {"name": "igw"}).json
    assert gateway["status"] == "detached"
    assert api.post(f"/api/v1/services/internet-gateways/{gateway['ig_id']}/attach_vpc/", {"vpc_id": vpc["id"]}).status_code == 200
    again = api.post(f"/networking/internet-gateways/{gateway['id']}/attach", {"vpc": "other"})
    assert (again.status_code, again.json["details"]["vpc_id"]) == (409, vpc["id"])
    assert api("PUT", f"{table}/default-route", {"target_type": "internet-gateway"}).json["status"] == "active"
    found = api.get(f"{table}/routes").json["results"]
    assert [(each["route_id"] == "local", each["destination_cidr"]) for each in found] == [(True, "10.0.0.0/16"), (False, WORLD)]
    assert api("DELETE", f"{table}/routes/local").status_code == 404
    busy = api("DELETE", f"/networking/internet-gateways/{gateway['id']}")
    assert (busy.status_code, busy.json["details"]["in_the_way"]) == (409, ["0.0.0.0/0 in net-main"])
    assert api("DELETE", f"/networking/internet-gateways/{gateway['id']}?force=true").status_code == 204
    assert api.get(f"{table}/routes").json["results"][1]["status"] == "blackhole"
    assert api("DELETE", f"{table}/routes/{found[1]['route_id']}").status_code == 204
    assert api("DELETE", table).status_code == 409


def test_a_table_is_made_with_its_routes(api: Api, client_for: Callable[..., FlaskClient], vpc: dict[str, Any]) -> None:
    gateway = api.post("/networking/internet-gateways", {"name": "igw", "vpc": "net"}).json["id"]
    card = api.post("/networking/network-interfaces", {"name": "card", "subnet": "small"}).json["id"]
    routes = [
        {"destination_cidr": WORLD, "target_type": "internet-gateway"},
        {"destination_cidr": "10.9.0.0/16", "target_type": "network-interface", "target_id": card},
    ]
    made = api.post(f"/networking/vpcs/{vpc['id']}/route-tables", {"name": "front", "routes": routes})
    assert made.status_code == 201, made.json
    assert [(each["destination_cidr"], each["target_id"]) for each in made.json["routes"]] == [(WORLD, gateway), ("10.9.0.0/16", card)]
    listed = api.get(f"/networking/route-tables/{made.json['id']}/routes").json["results"]
    assert [each["status"] for each in listed] == ["active"] * 3
    browser = client_for()
    typed = {"name": "typed", "vpc": vpc["id"], "routes": f"{WORLD} internet-gateway\r\n10.9.0.0/16 network-interface {card}\r\n"}
    form = "/networking/route-tables/new"
    assert browser.post(form, data={**typed, "csrf_token": csrf_of(browser.get(form))}).status_code == 303
    again = api.get("/networking/route-tables?search=typed").json["results"][0]
    assert [each["target_id"] for each in again["routes"]] == [gateway, card]
    long = browser.post(form, data={**typed, "name": "x", "routes": f"{WORLD} internet-gateway one two", "csrf_token": csrf_of(browser.get(form))})
    assert (long.status_code, "Line 1 has more than 3 words." in long.text) == (422, True)


def test_deleting_a_vpc_with_everything_in_it(api: Api, vpc: dict[str, Any], worker: TestWorker) -> None:
    refused = api("DELETE", f"/networking/vpcs/{vpc['id']}")
    assert (refused.status_code, refused.json["details"]["in_the_way"]) == (409, ["subnet small"])
    assert api("DELETE", f"/networking/vpcs/{vpc['id']}?force=true").status_code == 202
    assert api.post("/networking/subnets", {"name": "late", "vpc": "net", "cidr_block": "10.0.2.0/24"}).status_code == 409
    worker.drain()
    assert api.get(f"/networking/vpcs/{vpc['id']}").json["state"] == "deleted"
    assert [each["name"] for each in api.get("/networking/subnets").json["results"]] == ["others"]


def test_who_reaches_whom_and_the_drawing(api: Api, vpc: dict[str, Any], worker: TestWorker) -> None:
    for name in ("a", "b"):
        body = {"name": name, "flavor": "t3-micro", "image": "atonix-tiny", "vpc_id": vpc["id"]}
        assert api.post("/compute/instances", body).status_code == 202
    worker.drain()
    asked = api.post("/networking/reachability", {"source": "a", "target": "b", "port": 22}).json
    assert (asked["allowed"], asked["decided_by"], [hop["kind"] for hop in asked["hops"]]) == (
        True,
        "rule",
        ["interface", "rule", "route", "rule", "interface"],
    )
    assert asked["sentence"] == "a can reach b with SSH (TCP port 22): a rule of net-default decides. Lets everything in from 10.0.0.0/16."
    asked = api.post("/networking/reachability", {"source": "internet", "target": "b", "port": 22}).json
    assert asked["sentence"] == "The internet cannot reach b with SSH (TCP port 22): b has no public address."
    # Somebody who has the address only means the interface; where two VPCs have it, it has to be said which.
    asked = api.post("/networking/reachability", {"source": "10.0.1.4", "target": "b", "port": 22}).json
    assert asked["sentence"].startswith("a can reach b with SSH")
    body = {"name": "c", "flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": "twins", "private_ip": "10.0.1.4"}
    assert api.post("/networking/subnets", {"name": "twins", "vpc": "other", "cidr_block": "10.0.1.0/24"}).status_code == 201
    assert api.post("/compute/instances", body).status_code == 202
    refused = api.post("/networking/reachability", {"source": "10.0.1.4", "target": "b", "port": 22})
    assert (refused.status_code, "a, c. Name one of them" in refused.text) == (400, True)
    graph = api.get(f"/networking/vpcs/{vpc['id']}/topology").json
    assert {(node["type"], node["label"]) for node in graph["nodes"]} == {("vpc", "net"), ("subnet", "small"), ("instance", "a"), ("instance", "b")}
    assert {edge["source"] for edge in graph["edges"]} <= {node["id"] for node in graph["nodes"]}


def test_the_flow_log(api: Api, vpc: dict[str, Any], database: sessionmaker[Session]) -> None:
    path = f"/networking/vpcs/{vpc['id']}/flow-logs"
    assert api("PUT", path, {"enabled": True, "traffic_type": "reject"}).json["flow_logs_enabled"] is True
    from portal.kernel.db import now

    with database() as session, transaction(session):
        for number in range(30):
            session.add(
                FlowRecord(at=now(), vpc_id=vpc["id"], is_accepted=number % 3 == 0, protocol="tcp", source="10.0.1.4", source_port=40_000 + number,
                           destination="10.0.1.5", destination_port=80 + number % 2, size_bytes=60)
            )  # fmt: skip
    first = api.get(f"{path}?limit=20").json
    assert (len(first["results"]), first["results"][0]["src_port"], bool(first["next"])) == (20, 40_029, True)
    cursor = first["next"].rpartition("cursor=")[2]
    assert len(api.get(f"{path}?limit=20&cursor={cursor}").json["results"]) == 10
    assert {each["action"] for each in api.get(f"{path}?action=reject&port=81&limit=100").json["results"]} == {"reject"}
    assert api.get(f"{path}?action=maybe").status_code == 400
    assert [len(api.get(f"{path}?since={day}&limit=100").json["results"]) for day in ("2026-01-01", "2999-01-01")] == [30, 0]
    assert api.get(f"{path}?since=yesterday").status_code == 400


def test_the_flow_log_is_kept_by_the_portal_alone(api: Api, vpc: dict[str, Any]) -> None:
    path = f"/networking/vpcs/{vpc['id']}/flow-logs"
    refused = api("PUT", path, {"enabled": True, "destination": "s3://logs"})
    assert (refused.status_code, "destination" in refused.text) == (400, True)
    assert api("PUT", path, {"enabled": True, "destination": "portal"}).json["flow_logs_destination"] == "portal"
    assert api("PUT", path, {"enabled": False}).json["flow_logs_destination"] is None


def test_what_belongs_to_others_is_not_there(api: Api, api_for: Callable[..., Api], vpc: dict[str, Any], people: Any, app: Flask) -> None:
    stranger = api_for("project_admin", people.project())
    for path in ("", "/topology", "/ip-allocations", "/subnets", "/flow-logs"):
        assert stranger.get(f"/networking/vpcs/{vpc['id']}{path}").status_code == 404, path
    assert stranger.post("/networking/subnets", {"name": "x", "vpc": vpc["id"], "cidr_block": "10.0.9.0/24"}).status_code == 400
    assert stranger.post("/networking/reachability", {"source": "internet", "target": "10.0.1.4", "port": 1}).json["allowed"] is False
    viewer = api_for("viewer")
    assert viewer.get(f"{group_of(api, vpc)}/rules").status_code == 200
    assert viewer.post(f"{group_of(api, vpc)}/rules", {"from_port": 80, "cidr": WORLD}).status_code == 403


def test_a_place_is_named_by_names_and_ids_alike(api: Api, vpc: dict[str, Any]) -> None:
    body = {"name": "placed", "flavor": "t3-micro", "image": "atonix-tiny"}
    subnet = api.get(f"/networking/subnets?vpc={vpc['id']}").json["results"][0]["id"]
    assert api.post("/compute/instances", {**body, "vpc_id": "net", "subnet_id": subnet}).status_code == 202
    assert api.post("/compute/instances", {**body, "name": "again", "vpc_id": vpc["id"], "subnet_id": "small"}).status_code == 202
    wrong = api.post("/compute/instances", {**body, "name": "third", "vpc_id": "other", "subnet_id": subnet})
    assert (wrong.status_code, "another VPC than other" in wrong.json["message"]) == (400, True)
