"""The rules of a security group on its page: read aloud, added, changed, switched and removed in place, with and without scripts."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from portal.kernel.runner import TaskRun
from portal.networking.hits import read_rule_hits
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.recording_network import RecordingNetwork
from tests.support.web import Api, csrf_of

HTMX = {"HX-Request": "true"}


@pytest.fixture
def group(api: Api, worker: TestWorker) -> str:
    """The address of a group named app, in a VPC net that has the group web as well."""
    api.post("/networking/vpcs", {"name": "net", "cidr_block": "10.0.0.0/16"})
    api.post("/networking/security-groups", {"name": "web", "vpc": "net"})
    made = api.post("/networking/security-groups", {"name": "app", "vpc": "net"}).json
    worker.drain()
    return f"/networking/security-groups/{made['id']}"


@pytest.fixture
def browser(client_for: Callable[..., FlaskClient]) -> FlaskClient:
    return client_for("developer")


def rules(api: Api, group: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get(f"{group}/rules?direction=ingress").json["results"]
    return found


def token(browser: FlaskClient, group: str) -> dict[str, str]:
    return {"csrf_token": csrf_of(browser.get(f"{group}/rules"))}


ADDED = [
    ({"service": "ssh", "whom": "10.0.0.0/24"}, ["Lets SSH (TCP port 22) in from 10.0.0.0/24."]),
    ({"service": "web", "whom": "anywhere"}, ["Lets HTTP (TCP port 80) in from anywhere.", "Lets HTTPS (TCP port 443) in from anywhere."]),
    ({"service": "postgresql", "whom": "web"}, ["Lets PostgreSQL (TCP port 5432) in from members of web."]),
    ({"service": "tcp", "ports": "8000 - 8100", "whom": "10.0.3.4"}, ["Lets TCP ports 8000 to 8100 in from 10.0.3.4/32."]),
    ({"service": "udp", "ports": "53", "whom": "web"}, ["Lets DNS (UDP port 53) in from members of web."]),
    ({"service": "icmp", "whom": "anywhere"}, ["Lets ICMP of every type in from anywhere."]),
    ({"service": "icmp", "ports": "8", "whom": "10.0.0.0/8"}, ["Lets ICMP type 8 (ping) in from 10.0.0.0/8."]),
    ({"service": "-1", "whom": "10.0.0.0/16", "description": "Inside"}, ["Lets everything in from 10.0.0.0/16."]),
]


@pytest.mark.parametrize(("typed", "sentences"), ADDED, ids=lambda each: "-".join(each.values()) if isinstance(each, dict) else "")
def test_what_is_typed_is_read_and_added(browser: FlaskClient, api: Api, group: str, typed: dict[str, str], sentences: list[str]) -> None:
    given = {**token(browser, group), "direction": "ingress", **typed}
    read = browser.post(f"{group}/rules/reading", data=given, headers=HTMX)
    assert all(sentence in read.text for sentence in sentences)
    assert rules(api, group) == []
    assert browser.post(f"{group}/rules", data=given).headers["Location"] == f"{group}/rules"
    assert sorted(rule["sentence"] for rule in rules(api, group)) == sorted(sentences)
    assert {rule["description"] for rule in rules(api, group)} >= ({typed["description"]} if "description" in typed else set())
    page = browser.get(f"{group}/rules").text
    assert all(sentence in page for sentence in sentences)


WRONG = [
    ({"service": "tcp", "ports": "", "whom": "anywhere"}, "ports", "is required for tcp and udp"),
    ({"service": "tcp", "ports": "70000", "whom": "anywhere"}, "ports", "not 70000"),
    ({"service": "tcp", "ports": "90-80", "whom": "anywhere"}, "ports", "is no range"),
    ({"service": "tcp", "ports": "ssh", "whom": "anywhere"}, "ports", "must be a number such as 443"),
    ({"service": "icmp", "ports": "300", "whom": "anywhere"}, "ports", "not 300"),
    ({"service": "-1", "ports": "80", "whom": "anywhere"}, "ports", "is only for tcp and udp"),
    ({"service": "ssh", "whom": ""}, "whom", "a range, an address, a group or anywhere"),
    ({"service": "ssh", "whom": "10.0.0.1/16"}, "whom", "did you mean 10.0.0.0/16"),
    ({"service": "ssh", "whom": "fd00::/8"}, "whom", "IPv6"),
    ({"service": "ssh", "whom": "10.0.0.300"}, "whom", "must be an IPv4 address"),
    ({"service": "ssh", "whom": "nobody"}, "whom", "There is no security group nobody here."),
    ({"service": "tcp", "ports": "80", "whom": "nobody"}, "whom", "There is no security group nobody here."),
]


@pytest.mark.parametrize("headers", [{}, HTMX], ids=["plain", "scripts"])
@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[1]}-{case[2]}")
def test_what_is_wrong_stands_at_its_field(
    browser: FlaskClient, api: Api, group: str, case: tuple[dict[str, str], str, str], headers: dict[str, str]
) -> None:
    typed, field, says = case
    answer = browser.post(f"{group}/rules", data={**token(browser, group), "direction": "ingress", "description": "kept", **typed}, headers=headers)
    assert answer.status_code == 422
    at_field = answer.text[answer.text.index(f'id="{field}-error"') :][:400]
    assert says in at_field
    assert 'value="kept"' in answer.text
    assert rules(api, group) == []


def test_a_door_to_the_world_is_warned_of_before_it_is_open(browser: FlaskClient, group: str) -> None:
    given = {**token(browser, group), "direction": "ingress", "service": "rdp", "whom": "anywhere"}
    assert "Opens RDP to the whole internet" in browser.post(f"{group}/rules/reading", data=given, headers=HTMX).text
    assert "Opens" not in browser.post(f"{group}/rules/reading", data={**given, "direction": "egress"}, headers=HTMX).text
    assert "as soon as it makes sense" in browser.post(f"{group}/rules/reading", data={**given, "whom": ""}, headers=HTMX).text


def test_rules_change_in_place(browser: FlaskClient, api: Api, group: str) -> None:
    given = token(browser, group)
    added = browser.post(f"{group}/rules", data={**given, "service": "tcp", "ports": "80", "whom": "anywhere", "description": "shop"}, headers=HTMX)
    assert (added.status_code, "Added: Lets HTTP (TCP port 80) in from anywhere." in added.text) == (200, True)
    again = browser.post(f"{group}/rules", data={**given, "service": "http", "whom": "anywhere"}, headers=HTMX)
    assert "Nothing to add" in again.text
    twice = browser.post(f"{group}/rules", data={**given, "service": "tcp", "ports": "80", "whom": "anywhere"}, headers=HTMX)
    assert (twice.status_code, "app has this rule already" in twice.text) == (409, True)

    (rule,) = rules(api, group)
    form = browser.get(f"{group}/rules?edit={rule['rule_id']}").text
    assert 'id="e-ports" name="ports" value="80"' in form
    assert 'id="e-whom" name="whom" value="anywhere"' in form
    path = f"{group}/rules/{rule['rule_id']}"
    wrong = browser.post(path, data={**given, "ports": "8O", "whom": "anywhere"}, headers=HTMX)
    assert (wrong.status_code, 'id="e-ports-error"' in wrong.text) == (422, True)
    assert browser.post(path, data={**given, "ports": "8080-8090", "whom": "10.0.0.0/16", "description": ""}).status_code == 303
    (rule,) = rules(api, group)
    assert (rule["sentence"], rule["description"]) == ("Lets TCP ports 8080 to 8090 in from 10.0.0.0/16.", "")

    assert "switched off" in browser.post(f"{path}/switch", data=given, headers=HTMX).text
    assert rules(api, group)[0]["is_enabled"] is False
    assert browser.post(f"{path}/switch", data={**given, "is_enabled": "y"}).status_code == 303
    assert rules(api, group)[0]["is_enabled"] is True
    assert "Removed: Lets TCP ports 8080 to 8090" in browser.post(f"{path}/remove", data=given, headers=HTMX).text
    assert rules(api, group) == []
    assert browser.post(f"{path}/remove", data=given, headers=HTMX).status_code == 404


def test_what_a_rule_cannot_become_is_said(browser: FlaskClient, api: Api, group: str) -> None:
    given = token(browser, group)
    browser.post(f"{group}/rules", data={**given, "service": "ping", "whom": "10.0.0.0/8"})
    (rule,) = rules(api, group)
    path = f"{group}/rules/{rule['rule_id']}"
    for typed, field, says in (
        ({"ports": "8", "whom": "web"}, "e-whom", "add another rule for members of web"),
        ({"ports": "", "whom": "10.0.0.0/8"}, "e-ports", "add another rule for every type"),
    ):
        answer = browser.post(path, data={**given, **typed})
        assert (answer.status_code, says in answer.text[answer.text.index(f'id="{field}-error"') :][:400]) == (422, True)
    assert rules(api, group)[0]["sentence"] == rule["sentence"]
    assert browser.post(f"{group}/rules/rule-absent", data={**given, "ports": "8", "whom": "anywhere"}).status_code == 404


def test_a_rule_of_a_group_keeps_its_other_side(browser: FlaskClient, api: Api, group: str) -> None:
    given = token(browser, group)
    browser.post(f"{group}/rules", data={**given, "service": "tcp", "ports": "80", "whom": "web"})
    (rule,) = rules(api, group)
    assert 'id="e-whom"' not in browser.get(f"{group}/rules?edit={rule['rule_id']}").text
    assert browser.post(f"{group}/rules/{rule['rule_id']}", data={**given, "ports": "81", "description": "x"}).status_code == 303
    assert rules(api, group)[0]["sentence"] == "Lets TCP port 81 in from members of web."


def test_who_may_not_change_rules_reads_why(client_for: Callable[..., FlaskClient], api: Api, group: str) -> None:
    viewer = client_for("viewer")
    page = viewer.get(f"{group}/rules").text
    assert ("Rules cannot be changed here" in page, "Add rule" in page, "Switch off" in page) == (True, False, False)
    answer = viewer.post(f"{group}/rules", data={**token(viewer, group), "service": "ssh", "whom": "anywhere"})
    assert answer.status_code == 403
    assert rules(api, group) == []


@pytest.fixture
def task(people: People, worker: TestWorker) -> TaskRun:
    return TaskRun(people.context(None), worker.runner.engines)


def test_connections_stand_beside_the_rules(browser: FlaskClient, api: Api, group: str, network: RecordingNetwork, task: TaskRun) -> None:
    assert "The host has not said yet" in browser.get(f"{group}/rules").text
    network.hits = {api.get(f"{group}/rules").json["results"][0]["rule_id"]: 12_345}
    read_rule_hits(task)
    page = browser.get(f"{group}/rules").text
    assert '<td class="num md">12,345</td>' in page
    assert "read just now" in page
