"""Whoever may not see a thing in a network reads its name in no refusal, no rule, no list and no page of another."""

from collections.abc import Callable

import pytest

from tests.contract.test_iam import SMALL, allow, attach, write
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, browser

NETWORK = "/networking"
SECRET = "secret-x"


@pytest.fixture
def admin(api_for: Callable[..., Api]) -> Api:
    """A project admin."""
    return api_for("project_admin")


@pytest.fixture
def developer(api_for: Callable[..., Api]) -> Api:
    """Somebody from whom things are hidden."""
    return api_for("developer")


@pytest.fixture
def front(admin: Api, worker: TestWorker) -> str:
    """A subnet of a VPC with an internet gateway."""
    admin.post(f"{NETWORK}/vpcs", {"name": "net", "cidr_block": "10.0.0.0/16"})
    made: str = admin.post(f"{NETWORK}/subnets", {"name": "front", "vpc": "net", "cidr_block": "10.0.1.0/24"}).json["id"]
    worker.drain()
    return made


def hide(admin: Api, api: Api, kind: str, row_id: str) -> None:
    """Let somebody not see one thing."""
    hidden = allow(f"networking.{kind}.read", effect="Deny", StringEquals={"resource.id": row_id})
    attach(admin, write(admin, f"hide-{row_id}", hidden), api.user.id)
    assert api.get(f"{NETWORK}/{kind.replace('_', '-')}s/{row_id}").status_code == 404


def test_rules_and_interfaces_name_no_hidden_group(admin: Api, developer: Api, front: str, people: People) -> None:
    secret = admin.post(f"{NETWORK}/security-groups", {"name": SECRET, "vpc": "net"}).json["id"]
    group = admin.post(f"{NETWORK}/security-groups", {"name": "open", "vpc": "net"}).json["id"]
    assert admin.post(f"{NETWORK}/security-groups/{group}/rules", {"from_port": 80, "referenced_group": secret}).status_code == 201
    card = admin.post(f"{NETWORK}/network-interfaces", {"name": "card", "subnet": "front", "security_groups": [group, secret]}).json
    hide(admin, developer, "security_group", secret)
    page = browser(admin.client.application, people, developer.user)
    told = [
        developer.get(f"{NETWORK}/security-groups/{group}/rules").text, developer.get(f"{NETWORK}/network-interfaces/{card['id']}").text,
        developer.get(f"{NETWORK}/network-interfaces").text, developer("DELETE", f"{NETWORK}/security-groups/{group}").text,
        developer.post(f"{NETWORK}/security-groups/{group}/evaluate", {"direction": "ingress", "protocol": "tcp", "port": 80, "peer": card["private_ip"]}).text,
        page.get(f"{NETWORK}/security-groups/{group}/rules").text, page.get(f"{NETWORK}/network-interfaces/{card['id']}").text,
        page.get(f"{NETWORK}/network-interfaces").text, page.get(f"{NETWORK}/network-interfaces.csv").text,
    ]  # fmt: skip
    assert [SECRET in text for text in told] == [False] * len(told)
    assert "members of something that you may not see" in told[0]
    assert SECRET in admin.get(f"{NETWORK}/network-interfaces/{card['id']}").text


def test_refusals_count_what_is_hidden(admin: Api, api_for: Callable[..., Api], front: str) -> None:
    developer = api_for("project_admin")
    group = admin.post(f"{NETWORK}/security-groups", {"name": "open", "vpc": "net"}).json["id"]
    card = admin.post(f"{NETWORK}/network-interfaces", {"name": SECRET, "subnet": "front", "security_groups": [group]}).json["id"]
    other = admin.post(f"{NETWORK}/security-groups", {"name": f"{SECRET}-group", "vpc": "net"}).json["id"]
    admin.post(f"{NETWORK}/security-groups/{other}/rules", {"from_port": 80, "referenced_group": group})
    for kind, row_id in (("network_interface", card), ("security_group", other)):
        hide(admin, developer, kind, row_id)
    refused = [developer("DELETE", f"{NETWORK}/subnets/{front}"), developer("DELETE", f"{NETWORK}/security-groups/{group}")]
    assert [answer.status_code for answer in refused] == [409, 409], [answer.json for answer in refused]
    assert refused[0].json["details"]["in_the_way"] == ["1 network interface that you may not see"]
    assert refused[1].json["details"]["in_the_way"] == ["1 network interface that you may not see", "rules of 1 security group that you may not see"]
    assert f"network interface {SECRET}" in admin("DELETE", f"{NETWORK}/subnets/{front}").json["message"]


def test_a_hidden_group_takes_no_words_from_those_that_are_seen(admin: Api, developer: Api, front: str, worker: TestWorker) -> None:
    secret = admin.post(f"{NETWORK}/security-groups", {"name": SECRET, "vpc": "net"}).json["id"]
    for name in ("a", "b"):
        admin.post("/compute/instances", {"name": name, "subnet_id": "front", **SMALL})
    worker.drain()
    question = {"source": "a", "target": "b", "protocol": "tcp", "port": 80}
    before = developer.post(f"{NETWORK}/reachability", question).json
    assert "Lets everything out to anywhere." in str(before)
    hide(admin, developer, "security_group", secret)
    assert developer.post(f"{NETWORK}/reachability", question).json == before
