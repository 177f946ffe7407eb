"""What policies say of networks holds on every way: for what goes with something else, for what is taken along, and for what answers tell."""

import itertools
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient

from portal.kernel.policy_documents import VERSION
from tests.support.draining import TestWorker
from tests.support.web import Api

NETWORK = "/networking"
Limited = Callable[..., Api]


@pytest.fixture
def limited(api_for: Callable[..., Api], app: Flask) -> Limited:
    """`limited(allow, deny)`: a client of a service account that may do just that, in the same project."""

    boss, numbers = api_for("platform_admin"), itertools.count(1)

    def client(allow: list[str], deny: list[str]) -> Api:
        name = f"script-{next(numbers)}"
        account = boss.post("/service-accounts", {"name": name}).json["service_account_id"]
        statements = [{"Effect": effect, "Action": actions, "Resource": "*"} for effect, actions in (("Allow", allow), ("Deny", deny)) if actions]
        policy = boss.post("/security/policies", {"name": name, "document": {"Version": VERSION, "Statement": statements}}).json["id"]
        given = boss.post(f"/security/policies/{policy}/attach", {"principal_type": "service_account", "principal_id": account})
        assert given.status_code == 200, given.json
        return Api(app.test_client(), boss.user, boss.post(f"/service-accounts/{account}/keys", {"name": "ci"}).json["key"])

    return client


@pytest.fixture
def net(api: Api, worker: TestWorker) -> dict[str, str]:
    """A VPC with a public subnet, a NAT gateway, an interface and a group; ids by what they are."""
    made = {"vpc": ("vpcs", {"name": "net", "cidr_block": "10.0.0.0/16"}), "gateway": ("internet-gateways", {"name": "gate", "vpc": "net"}),
            "subnet": ("subnets", {"name": "front", "vpc": "net", "cidr_block": "10.0.1.0/24"}), "group": ("security-groups", {"name": "web", "vpc": "net"}),
            "card": ("network-interfaces", {"name": "card", "subnet": "front"})}  # fmt: skip
    ids = {kind: api.post(f"{NETWORK}/{path}", body).json["id"] for kind, (path, body) in made.items()}
    worker.drain()
    ids["table"] = api.get(f"{NETWORK}/vpcs/{ids['vpc']}").json["main_route_table_id"]
    api.post(f"{NETWORK}/route-tables/{ids['table']}/set-default-route", {"target_type": "internet-gateway"})
    ids["nat"] = api.post(f"{NETWORK}/nat-gateways", {"name": "nat", "subnet": "front"}).json["id"]
    worker.drain()
    return ids


def test_all_of_a_vpc_goes_only_with_who_may_delete_all_of_it(net: dict[str, str], api: Api, limited: Limited, worker: TestWorker) -> None:
    parts = ["subnet", "nat_gateway", "internet_gateway", "security_group", "network_interface"]
    script = limited(["networking.vpc.*", "networking.*.read"], [f"networking.{part}.delete" for part in parts])
    refused = script("DELETE", f"{NETWORK}/vpcs/{net['vpc']}?force=true")
    assert refused.status_code == 409, refused.json
    told = refused.json["details"]["in_the_way"]
    for each in ("Subnet front is not yours to delete (networking.subnet.delete).", "NAT gateway nat is not yours", "Internet gateway gate is not",
                 "Network interface card is not", "Security group web is not"):  # fmt: skip
        assert any(line.startswith(each) for line in told), (each, told)
    assert script.get(f"{NETWORK}/vpcs/{net['vpc']}/deletion").json["in_the_way"] == told
    worker.drain()
    assert api.get(f"{NETWORK}/nat-gateways/{net['nat']}").json["state"] == "available"
    assert api.get(f"{NETWORK}/vpcs/{net['vpc']}").json["state"] == "available"


def test_an_empty_vpc_needs_no_more_than_its_own_deletion(api: Api, limited: Limited, worker: TestWorker) -> None:
    vpc = api.post(f"{NETWORK}/vpcs", {"name": "empty", "cidr_block": "10.1.0.0/16"}).json["id"]
    worker.drain()
    assert limited(["networking.vpc.*"], [])("DELETE", f"{NETWORK}/vpcs/{vpc}").status_code == 202
    worker.drain()
    assert api.get(f"{NETWORK}/vpcs/{vpc}").json["state"] == "deleted"


def test_all_of_it_is_listed_before_and_with_its_job(
    net: dict[str, str], api: Api, client_for: Callable[..., FlaskClient], worker: TestWorker
) -> None:
    url = f"{NETWORK}/vpcs/{net['vpc']}"
    listed = {each["label"]: each["names"] for each in api.get(f"{url}/deletion").json["resources"]}
    assert listed == {
        "NAT gateway": ["nat"],
        "Network interface": ["card"],
        "Internet gateway": ["gate"],
        "Subnet": ["front"],
        "Security group": ["web"],
    }
    dialog = client_for().get(f"{url}/actions/delete").get_data(as_text=True)
    for each in ("1 NAT gateway <small>nat", "1 subnet <small>front", "1 security group <small>web"):
        assert each in dialog, each
    begun = api("DELETE", f"{url}?force=true")
    assert begun.status_code == 202
    worker.drain()
    (step,) = api.get(f"/jobs/{begun.json['job_id']}").json["steps"]
    assert step["detail"].startswith("With 1 NAT gateway (nat); 1 network interface (card); 1 internet gateway (gate); 1 subnet (front)")
    assert api.get(url).json["state"] == "deleted"


def test_instances_are_named_as_in_the_way_before(net: dict[str, str], api: Api, limited: Limited) -> None:
    made = api.post("/compute/instances", {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": net["subnet"]})
    assert made.status_code == 202, made.json
    url = f"{NETWORK}/vpcs/{net['vpc']}"
    assert api.get(f"{url}/deletion").json["in_the_way"] == ["instance web-1: terminate first."]
    blind = limited(["networking.vpc.*"], [])
    assert blind.get(f"{url}/deletion").json["in_the_way"][0] == "1 instance that you may not see: terminate first."
    assert [each["names"] for each in blind.get(f"{url}/deletion").json["resources"]] == [[]] * 5
    assert blind("DELETE", f"{url}?force=true").status_code == 409
    assert api.get(f"{NETWORK}/vpcs/{net['vpc']}").json["state"] == "available"


def test_who_may_not_delete_a_vpc_is_not_told_what_is_in_it(net: dict[str, str], limited: Limited) -> None:
    assert limited(["networking.vpc.read"], []).get(f"{NETWORK}/vpcs/{net['vpc']}/deletion").status_code == 403


def test_an_elastic_ip_is_taken_by_no_gateway_of_who_may_not_associate_it(net: dict[str, str], api: Api, limited: Limited) -> None:
    address = api.post(f"{NETWORK}/elastic-ips", {"name": "precious"}).json["id"]
    script = limited(["networking.nat_gateway.*", "networking.*.read"], ["networking.elastic_ip.associate"])
    refused = script.post(f"{NETWORK}/nat-gateways", {"name": "mine", "subnet": net["subnet"], "elastic_ip": address})
    assert (refused.status_code, refused.json["details"]["action"]) == (403, "networking.elastic_ip.associate")
    assert api.get(f"{NETWORK}/elastic-ips/{address}").json["associated_with"] is None
    assert script.post(f"{NETWORK}/nat-gateways", {"name": "mine", "subnet": net["subnet"]}).status_code == 202


def test_what_is_taken_apart_is_a_change_of_both(net: dict[str, str], api: Api, limited: Limited, worker: TestWorker) -> None:
    """A denial of changing one end is passed neither by joining nor by parting."""
    body = {"name": "prod", "flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": net["subnet"]}
    prod = api.post("/compute/instances", body).json["id"]
    worker.drain()
    card = api.get(f"{NETWORK}/network-interfaces?instance_id={prod}").json["results"][0]["id"]
    address = api.post(f"{NETWORK}/elastic-ips", {"name": "a"}).json["id"]
    table = api.post(f"{NETWORK}/route-tables", {"name": "empty", "vpc": net["vpc"]}).json["id"]
    volume = api.post("/storage/volumes", {"name": "data", "size_gb": 1}).json["id"]
    worker.drain()
    pairs = [
        (
            "networking.network_interface.update",
            f"elastic-ips/{address}",
            "associate",
            {"target_type": "network-interface", "target_id": card},
            "disassociate",
            {},
        ),
        ("compute.instance.update", f"network-interfaces/{net['card']}", "attach", {"instance": prod}, "detach", {}),
        ("compute.instance.update", f"/storage/volumes/{volume}", "attach", {"instance": prod}, "detach", {}),
        ("networking.subnet.update", f"route-tables/{table}", "associate", {"subnet": net["subnet"]}, "disassociate", {"subnet": net["subnet"]}),
    ]
    for denied, path, join, given, part, taken in pairs:
        whole = path if path.startswith("/") else f"{NETWORK}/{path}"
        script = limited(["networking.*", "compute.*", "storage.*"], [denied])
        for verb, inputs in ((join, given), (part, taken)):
            refused = script.post(f"{whole}/{verb}", inputs)
            assert (refused.status_code, refused.json.get("details", {}).get("action")) == (403, denied), (path, verb, refused.json)
            assert api.post(f"{whole}/{verb}", inputs).status_code in {200, 202}, (path, verb)
            worker.drain()
    script = limited(["networking.*"], ["networking.vpc.update"])
    other = api.post(f"{NETWORK}/vpcs", {"name": "other", "cidr_block": "10.9.0.0/16"}).json["id"]
    worker.drain()
    gate = api.post(f"{NETWORK}/internet-gateways", {"name": "g"}).json["id"]
    way = f"{NETWORK}/internet-gateways/{gate}"
    assert script.post(f"{NETWORK}/internet-gateways", {"name": "g2", "vpc": other}).status_code == 403
    assert script.post(f"{way}/attach", {"vpc": other}).status_code == 403
    assert api.post(f"{way}/attach", {"vpc": other}).status_code == 200
    assert script.post(f"{way}/detach").status_code == 403
    assert script("DELETE", way).status_code == 403
    assert api("DELETE", way).status_code in {200, 202, 204}


@pytest.fixture
def busy(net: dict[str, str], api: Api, worker: TestWorker) -> dict[str, str]:
    """The same with two instances in group web, of which one may be asked for PostgreSQL."""
    rule = {"from_port": 5432, "referenced_group": "web", "description": "x"}
    assert api.post(f"{NETWORK}/security-groups/{net['group']}/rules", rule).status_code == 201
    for name in ("web-1", "db-1"):
        body = {"name": name, "flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": net["subnet"], "security_groups": ["web"]}
        made = api.post("/compute/instances", body)
        assert made.status_code == 202, made.json
        net[name] = made.json["id"]
    worker.drain()
    return net


def test_what_lists_hide_drawings_and_addresses_hide_as_well(busy: dict[str, str], api: Api, limited: Limited) -> None:
    url = f"{NETWORK}/vpcs/{busy['vpc']}"
    secrets = [busy[each] for each in ("web-1", "db-1", "card", "nat", "gateway", "group")] + ["web-1", "db-1"]
    whole = api.get(f"{url}/topology")
    assert (whole.json["hidden"], all(each in whole.text for each in secrets if each != busy["group"])) == (0, True)
    # Of instances: their interfaces are there, under the names that their own list shows.
    cards = limited(["networking.*.read"], [])
    nodes = cards.get(f"{url}/topology").json["nodes"]
    assert [node["type"] for node in nodes if node["resource_id"].startswith("i-")] == []
    assert sum(node["type"] == "network-interface" for node in nodes) == 3
    blind = limited(["networking.vpc.read", "networking.subnet.read"], [])
    drawn = blind.get(f"{url}/topology")
    assert [each for each in secrets if each in drawn.text] == []
    assert ([node["type"] for node in drawn.json["nodes"]], drawn.json["hidden"]) == (["vpc", "subnet"], 5)
    addresses = blind.get(f"{url}/ip-allocations")
    assert [each for each in secrets if each in addresses.text] == []
    assert {(each["description"], each["state"]) for each in addresses.json["results"]} == {("something that you may not see", "allocated")}
    assert limited(["networking.vpc.read"], []).get(f"{url}/ip-allocations").json["results"] == []


def test_answers_tell_of_rules_and_guests_only_to_who_may_see_them(busy: dict[str, str], api: Api, limited: Limited) -> None:
    asked = {"source": "web-1", "target": "db-1", "protocol": "tcp", "port": 5432}
    path = f"{NETWORK}/reachability"
    told = api.post(path, asked).json
    assert (told["allowed"], told["decider_id"].partition("-")[0], "web decides" in told["sentence"]) == (True, "rule", True)
    assert limited(["networking.vpc.read"], []).post(path, asked).status_code == 400
    guests = limited(["networking.*.read", "compute.instance.read"], ["networking.security_group.read"])
    answer = guests.post(path, asked)
    assert (answer.json["allowed"], answer.json["decider_id"]) == (True, "")
    assert answer.json["sentence"].endswith(": a rule of something that you may not see decides.")
    assert [each for each in ("rule-", busy["group"], "Allows") if each in answer.text] == []
    blind = limited(["networking.vpc.read"], [])
    by_address = blind.post(path, {**asked, "source": "10.0.1.5", "target": "10.0.1.7"})
    assert [each for each in ("eni-", "web-1", "db-1", "rule-") if each in by_address.text] == []
