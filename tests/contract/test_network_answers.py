"""Each is answered with what was made for it, whoever does the same at once, and again with the same key; and what is in no network is told so."""

from collections.abc import Callable
from typing import Any

import pytest

from portal.api import networking
from portal.engines.ports import Capability
from portal.kernel.capabilities import report
from portal.kernel.db import transaction
from portal.kernel.operations import run
from portal.networking.routes import route_table_add_route
from portal.networking.security_groups import security_group_add_rule
from portal.networking.subnets import subnet_reserve_address
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api

NETWORK = "/networking"


@pytest.fixture
def vpc(api: Api) -> dict[str, Any]:
    """A VPC named net with the subnet front."""
    made: dict[str, Any] = api.post(f"{NETWORK}/vpcs", {"name": "net", "cidr_block": "10.0.0.0/16"}).json
    assert api.post(f"{NETWORK}/internet-gateways", {"name": "gate", "vpc": "net"}).status_code == 201
    subnet = api.post(f"{NETWORK}/subnets", {"name": "front", "vpc": "net", "cidr_block": "10.0.1.0/24"}).json["id"]
    return {**made, "subnet": subnet}


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch, people: People) -> Callable[..., None]:
    """`meanwhile(op, target, data)`: somebody else does this when the next request has been carried out and is not answered yet."""

    def arrange(op: Any, target: str, data: dict[str, Any]) -> None:
        other = people.context(people.user("project_admin"))

        def both(*given: Any, **more: Any) -> Any:
            outcome = run(*given, **more)
            monkeypatch.setattr(networking, "run", run)
            run(other, op, target, data)
            return outcome

        monkeypatch.setattr(networking, "run", both)

    return arrange


def test_a_reservation_is_answered_with_its_own_address(api: Api, vpc: dict[str, Any], meanwhile: Callable[..., None]) -> None:
    meanwhile(subnet_reserve_address, vpc["subnet"], {"description": "theirs"})
    url = f"{NETWORK}/subnets/{vpc['subnet']}/ip-allocations"
    mine = api.post(url, {"description": "mine"}, headers={"Idempotency-Key": "one"})
    assert (mine.status_code, mine.json["description"], mine.json["ip"]) == (201, "mine", "10.0.1.4")
    again = api.post(url, {"description": "mine"}, headers={"Idempotency-Key": "one"})
    assert (again.status_code, again.json) == (201, mine.json)
    assert api.get(f"{NETWORK}/vpcs/{vpc['id']}/ip-allocations").json["count"] == 2


def test_a_rule_is_answered_with_itself(api: Api, vpc: dict[str, Any], meanwhile: Callable[..., None]) -> None:
    group = vpc["default_group_id"]
    meanwhile(security_group_add_rule, group, {"from_port": 443, "cidr": "0.0.0.0/0"})
    assert api.post(f"{NETWORK}/security-groups/{group}/rules", {"from_port": 80, "cidr": "0.0.0.0/0"}).json["from_port"] == 80


def test_a_route_is_answered_with_itself(api: Api, vpc: dict[str, Any], meanwhile: Callable[..., None]) -> None:
    table, there = vpc["main_route_table_id"], {"target_type": "internet-gateway"}
    meanwhile(route_table_add_route, table, {"destination_cidr": "198.51.100.0/24", **there})
    assert (
        api.post(f"{NETWORK}/route-tables/{table}/routes", {"destination_cidr": "192.0.2.0/24", **there}).json["destination_cidr"] == "192.0.2.0/24"
    )


def test_what_is_gone_when_a_change_is_asked_for_again_is_not_found(api: Api, vpc: dict[str, Any]) -> None:
    rules, routes = f"{NETWORK}/security-groups/{vpc['default_group_id']}/rules", f"{NETWORK}/route-tables/{vpc['main_route_table_id']}"
    rule = api.post(rules, {"from_port": 80, "cidr": "0.0.0.0/0"}).json["rule_id"]
    asked: list[tuple[str, str, dict[str, str]]] = [
        ("PATCH", f"{rules}/{rule}", {"description": "x"}), ("PUT", f"{routes}/default-route", {"target_type": "internet-gateway"})
    ]  # fmt: skip
    for number, (method, url, body) in enumerate(asked):
        key = {"Idempotency-Key": f"change-{number}"}
        assert api(method, url, body, headers=key).status_code == 200
        gone = f"{rules}/{rule}" if method == "PATCH" else f"{routes}/routes/{api.get(f'{routes}/routes').json['results'][-1]['route_id']}"
        assert api("DELETE", gone).status_code == 204
        assert api(method, url, body, headers=key).status_code == 404


def test_an_id_is_nobody_elses_name(api: Api, vpc: dict[str, Any]) -> None:
    del vpc
    made = [api.post(f"{NETWORK}/security-groups", {"name": name, "vpc": "net"}).json for name in ("one", "two")]
    for number, (good, evil) in enumerate((made, made[::-1])):
        assert api("PATCH", f"{NETWORK}/security-groups/{evil['id']}", {"name": good["id"]}).status_code == 200
        card = api.post(f"{NETWORK}/network-interfaces", {"name": f"card-{number}", "subnet": "front", "security_groups": [good["id"]]}).json
        members = api.get(f"{NETWORK}/network-interfaces/{card['id']}").json["security_group_names"]
        assert members == api.get(f"{NETWORK}/security-groups/{good['id']}").json["name"]
        api("PATCH", f"{NETWORK}/security-groups/{evil['id']}", {"name": evil["name"]})


def test_an_instance_is_not_taken_for_another_by_its_name(api: Api, vpc: dict[str, Any], worker: TestWorker) -> None:
    place = {"flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": vpc["subnet"]}
    made = [api.post("/compute/instances", {"name": name, **place}).json["instance_id"] for name in ("one", "two")]
    worker.drain()
    for number, (good, evil) in enumerate((made, made[::-1])):
        assert api("PATCH", f"/compute/instances/{evil}", {"name": good}).status_code == 200
        card = api.get(f"{NETWORK}/network-interfaces?instance_id={good}").json["results"][0]
        address = api.post(f"{NETWORK}/elastic-ips", {"name": f"address-{number}"}).json["id"]
        answer = api.post(f"{NETWORK}/elastic-ips/{address}/associate", {"target_type": "instance", "target_id": good})
        assert answer.status_code == 200, answer.json
        assert api.get(f"{NETWORK}/network-interfaces/{card['id']}").json["public_ip"]
        asked = {"source": good, "target": "internet", "protocol": "tcp", "port": 80}
        assert api.post(f"{NETWORK}/reachability", asked).json["hops"][0]["id"] == card["id"]
        api("PATCH", f"/compute/instances/{evil}", {"name": f"was-{number}"})
        worker.drain()


def test_guests_are_told_only_what_can_be_told(api: Api, vpc: dict[str, Any]) -> None:
    told = {"search_domains": "shop.example, corp.example", "ntp_servers": "10.0.0.9", "mtu": 1400}
    way = f"{NETWORK}/vpcs/{vpc['id']}"
    assert api("PATCH", way, told).status_code == 200
    assert {name: api.get(way).json[name] for name in told} == told
    for field, value in (
        ("search_domains", "no domain"),
        ("search_domains", ",".join("abcdefg")),
        ("ntp_servers", "time.example"),
        ("ntp_servers", "127.0.0.1"),
        ("mtu", 9000),
    ):
        for refused in (api("PATCH", way, {field: value}), api.post(f"{NETWORK}/vpcs", {"name": "n", "cidr_block": "10.5.0.0/16", field: value})):
            assert (refused.status_code, list(refused.json["details"])) == (400, [field]), (field, value)


def test_what_others_decide_is_not_certain(api: Api, vpc: dict[str, Any], worker: TestWorker) -> None:
    api.post("/compute/instances", {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": vpc["subnet"]})
    worker.drain()
    table = api.get(f"{NETWORK}/vpcs/{vpc['id']}").json["main_route_table_id"]
    assert api.post(f"{NETWORK}/route-tables/{table}/set-default-route", {"target_type": "internet-gateway"}).status_code == 200
    web = api.get(f"{NETWORK}/network-interfaces").json["results"][0]
    answers = {
        target: api.post(f"{NETWORK}/reachability", {"source": "web", "target": target, "port": 80}).json
        for target in ("internet", "100.99.0.1", web["private_ip"])
    }
    found = {target: (answer["allowed"], answer["is_certain"]) for target, answer in answers.items()}
    assert found == {"internet": (True, True), "100.99.0.1": (True, False), web["private_ip"]: (True, True)}, answers


def test_an_address_and_the_internet_are_themselves_whatever_is_called_so(api: Api, vpc: dict[str, Any], worker: TestWorker) -> None:
    place = {"flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": vpc["subnet"]}
    api.post("/compute/instances", {"name": "web", **place})
    worker.drain()
    web = api.get(f"{NETWORK}/network-interfaces").json["results"][0]
    asked = [{"source": "internet", "target": "web"}, {"source": "web", "target": "internet"}, {"source": "web", "target": web["private_ip"]},
             {"source": "internet", "target": web["id"]}]  # fmt: skip
    before = [api.post(f"{NETWORK}/reachability", {**each, "port": 80}).json for each in asked]
    for name in ("internet", web["private_ip"], web["id"]):
        assert api.post("/compute/instances", {"name": name, **place}).status_code == 202
    worker.drain()
    assert [api.post(f"{NETWORK}/reachability", {**each, "port": 80}).json for each in asked] == before


def test_a_guest_outside_any_network_is_told_so(api: Api, people: People, worker: TestWorker) -> None:
    with people.sessions() as session, transaction(session):
        report(session, Capability("network", available=False, detail="", reason="no namespaces"), worker="w")
    assert api.post("/compute/instances", {"name": "u", "flavor": "t3-micro", "image": "atonix-tiny"}).status_code == 202
    worker.drain()
    for asked in ({"source": "u", "target": "internet"}, {"source": "internet", "target": "u"}):
        answer = api.post(f"{NETWORK}/reachability", {**asked, "port": 80})
        assert (answer.status_code, "u is in no network: it has outbound user networking" in answer.json["message"]) == (400, True), answer.json
