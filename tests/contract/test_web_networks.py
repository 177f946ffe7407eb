"""Pages of networks: the drawing folds and stays readable, the map of addresses, rules that are changed in place, and who reaches whom."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from portal.engines.network_ports import Drift
from portal.kernel.runner import TaskRun
from portal.networking.reconcile import reconcile_networks
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
    picture = page.text[page.text.index('<svg class="topo"') : page.text.index("As a list")]
    assert len(re.findall(r'<a href="/compute/instances/i-', picture)) == 5
    assert "3 more" in picture
    assert f'<a href="/networking/vpcs/{vpc["id"]}"><title>net ' in picture
    assert f'<a href="/networking/route-tables?vpc_id={vpc["id"]}"><title>Router of net' in picture
    # Those that are folded away stand in the list, each with its page.
    listed = page.text[page.text.index("As a list") :]
    assert sorted(re.findall(r'<a href="/compute/instances/i-[^"]*">(web-\d)</a>', listed)) == [f"web-{number}" for number in range(8)]
    assert "8 running" in listed


def test_an_instance_says_what_it_is_called_and_nobody_else_is_called_so(
    client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any], worker: TestWorker, network: RecordingNetwork
) -> None:
    for name in ("web.0", "WEB 0"):
        api.post("/compute/instances", {"name": name, "flavor": "t3-micro", "image": "atonix-tiny", "vpc_id": "net"})
    worker.drain()
    called = [name for port in network.specs[vpc["id"]].ports for name in port.names]
    assert sorted(called) == sorted([*(f"web-{number}" for number in range(8)), "web-0-2", "web-0-3"])
    for name, full in (("web-0", "web-0.net.internal"), ("web.0", "web-0-2.net.internal"), ("WEB 0", "web-0-3.net.internal")):
        (found,) = [each for each in api.get("/compute/instances?limit=50").json["results"] if each["name"] == name]
        assert full in client_for("viewer").get(f"/compute/instances/{found['id']}/network").text


def test_pages_write_abbreviations_as_such(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    browser = client_for("developer")
    assert "Create VPC" in browser.get("/networking/vpcs").text
    assert "Delete VPC" in browser.get(f"/networking/vpcs/{vpc['id']}/actions/delete").text
    subnet = api.get(f"/networking/subnets?vpc={vpc['id']}").json["results"][0]["id"]
    page = browser.get(f"/networking/subnets/{subnet}/actions/reserve_address").text
    assert ("Reserve an address: front" in page, "Reserve an address subnet" in page) == (True, False)
    assert "There is no VPC" in browser.get("/networking/vpcs/vpc-absent").text


def test_the_map_of_addresses(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    subnet = api.get(f"/networking/subnets?vpc={vpc['id']}").json["results"][0]["id"]
    path = f"/networking/subnets/{subnet}"
    api.post(f"{path}/ip-allocations", {"ip": "10.0.1.200", "description": "printer"})
    viewer, browser = client_for("viewer"), client_for("developer")
    page = viewer.get(f"{path}/addresses").text
    assert "242 of 251 addresses are free" in page
    assert len(re.findall(r'<li class="(?:free|taken|reserved|kept)', page)) == 256
    assert re.search(
        r'<li class="taken" title="10.0.1.4: web-0"><a href="/networking/network-interfaces/eni-[^"]+" aria-label="10.0.1.4: web-0">4</a>', page
    )
    assert 'title="10.0.1.1: Router"' in page
    assert ("Release" in page, "Reserve an address" in page) == (False, False)
    assert "Reserve an address" in browser.get(f"{path}/addresses").text
    given = {"csrf_token": csrf_of(browser.get(f"{path}/addresses")), "ip": "10.0.1.200", "tab": "addresses"}
    assert browser.post(f"{path}/actions/release_address", data=given).headers["Location"] == f"{path}/addresses"
    assert "printer" not in browser.get(f"{path}/addresses").text
    assert browser.post(f"{path}/actions/reserve_address", data={**given, "tab": "//elsewhere"}).headers["Location"] == path


def test_a_large_subnet_is_mapped_in_blocks(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    wide = api.post("/networking/subnets", {"name": "wide", "vpc": "net", "cidr_block": "10.0.128.0/17"}).json["id"]
    for ip in ("10.0.128.9", "10.0.128.10", "10.0.255.200"):
        api.post(f"/networking/subnets/{wide}/ip-allocations", {"ip": ip})
    page = client_for("viewer").get(f"/networking/subnets/{wide}/addresses").text
    told = re.findall(r'title="(\S+/25): (\d+) of 128 taken"', page)
    assert len(told) == 256
    assert [each for each in told if each[1] != "0"] == [("10.0.128.0/25", "2"), ("10.0.255.128/25", "1")]


def test_routes_are_named_and_changed_on_their_page(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    gateway = api.post("/networking/internet-gateways", {"name": "way-out", "vpc": "net"}).json["id"]
    path, browser = f"/networking/route-tables/{vpc['main_route_table_id']}", client_for("developer")
    given = {"csrf_token": csrf_of(browser.get(f"{path}/routes")), "tab": "routes"}
    added = browser.post(f"{path}/actions/add_route", data={**given, "destination_cidr": "0.0.0.0/0", "target_type": "internet-gateway"})
    assert added.headers["Location"] == f"{path}/routes"
    page = browser.get(f"{path}/routes").text
    assert f'<a href="/networking/internet-gateways/{gateway}">way-out</a>' in page
    assert "Remove" not in client_for("viewer").get(f"{path}/routes").text
    route = api.get(f"{path}/routes").json["results"][1]["route_id"]
    assert browser.post(f"{path}/actions/remove_route", data={**given, "route": route}).headers["Location"] == f"{path}/routes"
    assert "way-out" not in browser.get(f"{path}/routes").text
    # What is asked for in a dialog comes back to the tab as well.
    assert 'name="tab" value="routes"' in browser.get(f"{path}/actions/add_route?tab=routes").text


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
    for port, says in (("70000", "not 70000"), ("ssh", "must be a number"), ("", "is required for tcp and udp")):
        wrong = client_for("viewer").get("/networking/reachability", query_string={**asked, "port": port})
        assert (wrong.status_code, says in wrong.text[wrong.text.index('id="port-error"') :]) == (422, True)


def test_the_way_links_to_what_decides(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    asked = {"source": "web-0", "target": "web-1", "protocol": "tcp", "port": "80"}
    answer = api.post("/networking/reachability", {**asked, "port": 80}).json
    page = client_for("viewer").get("/networking/reachability", query_string=asked).text
    group = f"/networking/security-groups/{vpc['default_group_id']}/rules"
    assert f'<a href="{group}#{answer["decider_id"]}">' in page
    assert page.count("decides</span>") == 1
    assert all(hop["text"] in page for hop in answer["hops"])
    for rule in api.get(group).json["results"]:
        if rule["direction"] == "ingress":
            api("DELETE", f"{group}/{rule['rule_id']}")
    refused = client_for("viewer").get("/networking/reachability", query_string=asked).text
    assert "Stops here." in refused
    assert api.post("/networking/reachability", {**asked, "port": 80}).json["sentence"].partition(": ")[2] in refused
    assert page.count("decides</span>") == 1


def test_what_goes_with_a_vpc_is_listed_before(client_for: Callable[..., FlaskClient], vpc: dict[str, Any]) -> None:
    page = client_for("project_admin").get(f"/networking/vpcs/{vpc['id']}/actions/delete").text
    effects = page[page.index('class="effects"') : page.index("Delete all of it")]
    for part in ("1 subnet", "front", "web-0", "terminate first"):
        assert part in effects, part


def test_pages_lead_on(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    browser = client_for("viewer")
    inside = browser.get(f"/networking/vpcs/{vpc['id']}").text
    links = re.findall(rf'href="(/networking/[a-z-]+\?vpc_id={vpc["id"]})"', inside)
    assert len(links) == 7
    assert all(browser.get(link).status_code == 200 for link in links)
    assert "front" in browser.get(links[0]).text
    interface = api.get("/networking/network-interfaces").json["results"][0]
    page = browser.get(f"/networking/network-interfaces/{interface['id']}").text
    assert f'href="/compute/instances/{interface["instance_id"]}/network"' in page
    assert f'href="/networking/security-groups/{vpc["default_group_id"]}/rules"' in page


def test_an_instance_shows_its_interfaces_and_the_rules_that_hold(client_for: Callable[..., FlaskClient], api: Api, vpc: dict[str, Any]) -> None:
    instance = api.get("/compute/instances?search=web-3").json["results"][0]
    page = client_for("viewer").get(f"/compute/instances/{instance['id']}/network").text
    assert instance["private_ip"] in page
    reached = page[page.index("Who may reach it") : page.index("Whom it may reach")]
    assert ("Lets everything in from 10.0.0.0/16." in reached, "out to" in reached) == (True, False)
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
