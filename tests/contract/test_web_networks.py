"""Pages of networks: the drawing folds and stays readable, the map of addresses, rules that are changed in place, and who reaches whom."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from portal.engines.network_ports import Drift
from portal.kernel.runner import TaskRun
from portal.networking.reconcile import reconcile_networks
from portal.networking.view import Edge, Node, Topology
from portal.web.topology import draw
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.recording_network import RecordingNetwork
from tests.support.web import Api, csrf_of


@pytest.fixture
def vpc(api: Api, worker: TestWorker) -> dict[str, Any]:
    """A VPC named net with a subnet and eight instances in it."""
    made = api.post("/networking/vpcs", {"name": "net", "cidr_block": "10.0.0.0/16"}).json
    api.post("/networking/subnets", {"name": "front", "vpc": "net", "cidr_block": "10.0.1.0/24"})
    for number in range(8):
        api.post("/compute/instances", {"name": f"web-{number}", "flavor": "t3-micro", "image": "atonix-tiny", "vpc_id": "net"})
    worker.drain()
    found: dict[str, Any] = api.get(f"/networking/vpcs/{made['id']}").json
    return found


def test_the_drawing_has_every_thing_as_a_link_or_folded(client_for: Callable[..., FlaskClient], vpc: dict[str, Any]) -> None:
    page = client_for("viewer").get(f"/networking/vpcs/{vpc['id']}/topology")
    assert page.status_code == 200
    picture = page.text[page.text.index('<svg class="topo"') : page.text.index("The same as a list")]
    assert len(re.findall(r'<a href="/compute/instances/i-', picture)) == 5
    assert "3 more" in picture
    # Those that are folded away stand in the list.
    assert all(f"web-{number}" in page.text for number in range(8))


def test_two_hundred_instances_are_still_a_drawing() -> None:
    subnets = [Node(f"subnet-{n}", "subnet", f"net-{n}", f"10.0.{n}.0/24", f"subnet-{n}") for n in range(20)]
    guests = [Node(f"eni-{n}", "instance", "a" * 40, f"10.0.{n // 10}.{n}", f"i-{n}") for n in range(200)]
    edges = [Edge("vpc-1", each.id) for each in subnets] + [Edge(f"subnet-{n // 10}", f"eni-{n}") for n in range(200)]
    drawing = draw(Topology([Node("vpc-1", "vpc", "big", "10.0.0.0/16", "vpc-1"), *subnets, *guests], edges))
    assert (len(drawing.zones), sum(len(zone.boxes) + zone.more for zone in drawing.zones)) == (20, 200)
    assert drawing.height < 2500
    places = [(zone.x, zone.y, zone.height) for zone in drawing.zones]
    assert all(a[0] != b[0] or a[1] + a[2] < b[1] or b[1] + b[2] < a[1] for a in places for b in places if a is not b)
    assert max(len(box.label) for zone in drawing.zones for box in zone.boxes) == 20


def test_the_map_of_addresses(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    subnet = api.get(f"/networking/subnets?vpc={vpc['id']}").json["results"][0]["id"]
    page = client_for("viewer").get(f"/networking/subnets/{subnet}/addresses").text
    assert "243 of 251 addresses are free" in page
    assert page.count("<title>10.0.1.") == 256
    assert "10.0.1.1: router" in page


def test_rules_are_read_in_words_and_changed_in_place(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    path = f"/networking/security-groups/{vpc['default_group_id']}"
    rule = api.post(f"{path}/rules", {"from_port": 22, "cidr": "0.0.0.0/0"}).json["rule_id"]
    browser = client_for("developer")
    page = browser.get(f"{path}/rules")
    assert "Lets SSH (TCP port 22) in from anywhere." in page.text
    assert "Opens SSH to the whole internet" in page.text
    assert "Applying" in page.text
    token = csrf_of(page)
    assert browser.post(f"{path}/actions/update_rule", data={"csrf_token": token, "rule_id": rule}).status_code == 303
    assert next(each for each in api.get(f"{path}/rules").json["results"] if each["rule_id"] == rule)["is_enabled"] is False
    assert browser.post(f"{path}/actions/update_rule", data={"csrf_token": token, "rule_id": rule, "is_enabled": "y"}).status_code == 303
    assert next(each for each in api.get(f"{path}/rules").json["results"] if each["rule_id"] == rule)["is_enabled"] is True
    assert browser.post(f"{path}/actions/remove_rule", data={"csrf_token": token, "rule_id": rule}).status_code == 303
    assert rule not in browser.get(f"{path}/rules").text
    assert "Remove" not in client_for("viewer").get(f"{path}/rules").text


def test_pages_and_api_answer_with_the_same_words(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    asked = {"source": "web-0", "target": "web-1", "protocol": "tcp", "port": 80}
    page = client_for("viewer").get("/networking/reachability", query_string=asked)
    assert api.post("/networking/reachability", asked).json["sentence"] in page.text
    wrong = client_for("viewer").get("/networking/reachability", query_string={**asked, "source": "the moon"})
    assert (wrong.status_code, "no network interface here" in wrong.text) == (422, True)
    assert client_for("viewer").get("/networking/reachability").status_code == 200


def test_an_instance_shows_its_interfaces_and_the_rules_that_hold(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    instance = api.get("/compute/instances?search=web-3").json["results"][0]
    page = client_for("viewer").get(f"/compute/instances/{instance['id']}/network").text
    assert instance["private_ip"] in page
    assert "Lets everything in from 10.0.0.0/16." in page
    for path in (f"/networking/vpcs/{vpc['id']}/flows", f"/networking/route-tables/{vpc['main_route_table_id']}/routes"):
        assert client_for("viewer").get(path).status_code == 200


def test_what_somebody_took_from_the_host_is_told_on_the_page(
    client_for: Callable[..., FlaskClient], vpc: dict[str, Any], worker: TestWorker, network: RecordingNetwork, people: People
) -> None:
    network.lost = [Drift(vpc["id"], "The name server does not run.")]
    reconcile_networks(TaskRun(people.context(None), worker.runner.engines))
    worker.drain()
    for role in ("project_admin", "viewer"):
        page = client_for(role).get(f"/networking/vpcs/{vpc['id']}").text
        assert "Drifted" in page, role
        assert "The name server does not run." in page, role
