"""Networks in the browser: how every page of them looks, and a network from its first subnet to its deletion."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest
import requests
from playwright.sync_api import BrowserContext, Page, expect

from tests.e2e.conftest import Running, sign_in
from tests.e2e.looks import SCREENS, Looked, Post
from tests.support.servers import until

pytestmark = pytest.mark.e2e
NET = "/api/v1/networking"
LISTS = (
    "vpcs",
    "subnets",
    "security-groups",
    "route-tables",
    "internet-gateways",
    "nat-gateways",
    "network-interfaces",
    "elastic-ips",
    "vpc-peerings",
)


@pytest.fixture
def tenant(fake: Running, post: Post) -> dict[str, str]:
    """The addresses of one of each, made at the first call: two VPCs with a peering, many instances, a way out, and rules of which one is dangerous."""
    found = requests.get(f"{fake.url}{NET}/vpcs?search=shop", headers=_token(fake), timeout=20).json()["results"]
    if not found:
        for name, cidr in (("shop", "10.20.0.0/16"), ("reports", "10.30.0.0/16")):
            vpc = post(f"{NET}/vpcs", {"name": name, "cidr_block": cidr})["id"]
            _settled(fake, f"{NET}/vpcs/{vpc}", "available")
        post(f"{NET}/subnets", {"name": "web", "vpc": "shop", "cidr_block": "10.20.1.0/24"})
        post(f"{NET}/subnets", {"name": "wide", "vpc": "shop", "cidr_block": "10.20.128.0/17"})
        post(f"{NET}/subnets", {"name": "batch", "vpc": "reports", "cidr_block": "10.30.1.0/24"})
        gateway = post(f"{NET}/internet-gateways", {"name": "shop-gateway", "vpc": "shop"})["id"]
        table = post(f"{NET}/route-tables", {"name": "a-table-with-quite-a-long-name", "vpc": "shop"})["id"]
        post(f"{NET}/route-tables/{table}/associate-subnet", {"subnet": "web"})
        post(f"{NET}/route-tables/{table}/routes", {"destination_cidr": "0.0.0.0/0", "target_type": "internet-gateway", "target_id": gateway})
        post(f"{NET}/nat-gateways", {"name": "shop-nat", "subnet": "web"})
        peering = post(f"{NET}/vpc-peerings", {"name": "shop-reports", "vpc": "shop", "peer_vpc": "reports"})["id"]
        post(f"{NET}/vpc-peerings/{peering}/accept", {})
        group = post(f"{NET}/security-groups", {"name": "doors", "vpc": "shop"})["id"]
        post(f"{NET}/security-groups/{group}/rules", {"from_port": 22, "cidr": "0.0.0.0/0", "description": "Until the other way in is there"})
        post(f"{NET}/security-groups/{group}/rules", {"from_port": 8000, "to_port": 8100, "referenced_group": "doors"})
        machine = {"flavor": "t3-micro", "image": "atonix-tiny", "vpc_id": "shop", "subnet_id": "web", "security_groups": ["doors"], "count": 20}
        post("/api/v1/compute/instances", {"name": "a-web-server-of-the-shop", **machine})
        address = post(f"{NET}/elastic-ips", {"name": "front-door"})["id"]
        post(f"{NET}/elastic-ips/{address}/associate", {"target_type": "instance", "target_id": "a-web-server-of-the-shop-1"})
    ids = {}
    for kind in (*(f"networking/{each}" for each in LISTS), "compute/instances"):
        rows = requests.get(f"{fake.url}/api/v1/{kind}?ordering=created_at&limit=100", headers=_token(fake), timeout=20).json()["results"]
        best = next(
            (row for row in rows if row["name"] in {"shop", "web", "doors", "a-table-with-quite-a-long-name", "a-web-server-of-the-shop-1"}), rows[0]
        )
        ids[kind.partition("/")[2]] = f"{fake.url}/{kind}/{best['id']}"
        ids |= {row["name"]: f"{fake.url}/{kind}/{row['id']}" for row in rows}
    return ids


def _token(portal: Running) -> dict[str, str]:
    body = {"username": "admin", "password": portal.settings.admin_password.get_secret_value()}
    return {"Authorization": f"Token {requests.post(f'{portal.url}/api-token-auth/', json=body, timeout=20).json()['token']}"}


def _settled(portal: Running, path: str, state: str) -> None:
    headers = _token(portal)
    until(lambda: requests.get(portal.url + path, headers=headers, timeout=20).json()["state"] == state, within_s=30, what=f"{path} is {state}")


@SCREENS
def test_every_page_of_networks(fake: Running, tenant: dict[str, str], screen: Callable[[], Page], tmp_path: Path) -> None:
    page, looked = screen(), Looked(tmp_path)
    sign_in(page, fake)
    one = tenant
    group, first = one["security-groups"], "a-web-server-of-the-shop-1"
    tabs = {"vpcs": ("topology", "topology?view=drawing", "flows", "actions/delete", "actions/configure_flow_logs"), "subnets": ("addresses", "actions/reserve_address"),
            "security-groups": ("rules", "actions/delete"), "route-tables": ("routes", "actions/add_route"), "elastic-ips": ("actions/associate",),
            "instances": ("network",)}  # fmt: skip
    paths = [f"{fake.url}/networking/{each}" for each in LISTS] + [f"{fake.url}/networking/{each}/new" for each in LISTS if each != "reports"]
    paths += [one[each] for each in (*LISTS, "instances")] + [f"{one[kind]}/{tab}" for kind, names in tabs.items() for tab in names]
    paths += [f"{one['wide']}/addresses", f"{one['reports']}/topology"]
    for asked in (
        {},
        {"source": "internet", "target": first, "port": "22"},
        {"source": first, "target": "internet", "port": "x"},
        {"source": "internet", "target": first, "port": "80"},
    ):
        paths.append(f"{fake.url}/networking/reachability?{urlencode(asked)}")
    for path in paths:
        page.goto(path)
        looked.at(page)
    page.goto(f"{group}/rules")
    page.get_by_role("link", name=re.compile("^Edit rule: Lets SSH")).click()
    expect(page.get_by_role("button", name="Save rule")).to_be_visible()
    looked.at(page)
    page.get_by_role("form", name=re.compile("^Change:")).get_by_label("Ports").fill("nonsense")
    page.get_by_role("button", name="Save rule").click()
    expect(page.locator("#e-ports-error")).to_contain_text("must be a number")
    looked.at(page)
    assert looked.faults == []


def test_the_drawing_is_walked_by_keys(fake: Running, tenant: dict[str, str], open_context: Callable[..., BrowserContext]) -> None:
    page = open_context().new_page()
    sign_in(page, fake)
    page.goto(f"{tenant['vpcs']}/topology")
    links = page.locator("svg.topo a")
    # Two of three subnets are in it; one folds 15 of its 20 instances.
    names = page.locator("svg.topo a > title").all_text_contents()
    assert len(names) == links.count()
    assert sum("instance, running" in name for name in names) == 5
    assert [name for name in names if " more " in name] == ["15 more 15 running, in web"]
    links.first.focus()
    reached = set()
    for _ in names:
        reached.add(page.evaluate("document.activeElement.querySelector('title')?.textContent"))
        page.keyboard.press("Tab")
    assert reached == set(names)
    page.get_by_role("link", name="shop-nat 100.64.0").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("shop-nat")


def test_rules_without_scripts(fake: Running, tenant: dict[str, str], open_context: Callable[..., BrowserContext]) -> None:
    page = open_context(java_script_enabled=False).new_page()
    sign_in(page, fake)
    page.goto(f"{fake.url}/networking/security-groups/new?name=plain")
    page.get_by_role("radio", name=re.compile("reports")).check()
    page.get_by_role("button", name="Create security group").click()
    page.get_by_role("link", name="Rules", exact=True).click()
    page.get_by_label("What").select_option("postgresql")
    page.get_by_label("From, or to").fill("10.30.0.1/16")
    page.get_by_role("button", name="Add rule").click()
    expect(page.locator("#whom-error")).to_contain_text("did you mean 10.30.0.0/16")
    page.get_by_label("From, or to").fill("10.30.0.0/16")
    page.get_by_role("button", name="Add rule").click()
    rule = page.get_by_role("row", name=re.compile("Lets PostgreSQL"))
    expect(rule).to_be_visible()
    rule.get_by_role("link", name=re.compile("^Edit")).click()
    form = page.get_by_role("form", name=re.compile("^Change:"))
    form.get_by_label("Ports").fill("5432-5433")
    form.get_by_role("button", name="Save rule").click()
    rule = page.get_by_role("row", name=re.compile("Lets TCP ports 5432 to 5433"))
    rule.get_by_role("button", name=re.compile("^Switch off")).click()
    expect(rule).to_contain_text("Off")
    rule.get_by_role("button", name=re.compile("^Remove")).click()
    expect(rule).to_have_count(0)


def make(page: Page, url: str, button: str, **fields: str) -> str:
    """Fill in the form for something new of the VPC journey; the address of what is there then."""
    page.goto(url)
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)
    if page.get_by_role("radio", name=re.compile("^journey")).count():
        page.get_by_role("radio", name=re.compile("^journey")).check()
    page.locator("#summary").get_by_role("button", name=button).click()
    expect(page).to_have_url(re.compile(r"/[a-z]+-[0-9a-f]{12}$"))
    return page.url


def delete(page: Page, url: str, button: str, name: str, *, everything: bool = False) -> None:
    page.goto(url)
    if everything:
        page.get_by_label("Delete all of it").check()
    page.get_by_label(re.compile("to confirm")).fill(name)
    page.get_by_role("button", name=button).click()


def with_preset(page: Page) -> None:
    """Read aloud with its warning before it is there; the page is not loaded again."""
    page.get_by_role("link", name="Rules", exact=True).click()
    page.wait_for_load_state()
    page.evaluate("window.stays = true")
    page.get_by_label("What").select_option("ssh")
    page.get_by_label("From, or to").fill("anywhere")
    expect(page.locator(".reading")).to_contain_text("Opens SSH to the whole internet")
    page.get_by_role("button", name="Add rule").click()
    expect(page.get_by_role("status").filter(has_text="Added: Lets SSH (TCP port 22) in from anywhere.")).to_be_focused()
    expect(page.get_by_role("row", name=re.compile("Lets SSH"))).to_contain_text("On")
    assert page.evaluate("window.stays")


def says_why(page: Page, portal: Running, vpc: str, address: str) -> None:
    """Why not, then what is missing, then why."""

    def ask(port: str) -> None:
        page.goto(f"{portal.url}/networking/reachability?{urlencode({'source': 'internet', 'target': 'ferry', 'port': port})}")

    ask("22")
    expect(page.get_by_role("heading", name="It does not get there")).to_be_visible()
    expect(page.locator("ol.steps .fail")).to_contain_text("no route of harbour leads to the internet gateway")
    page.goto(vpc)
    page.get_by_role("link", name="journey-main").click()
    page.get_by_role("link", name="Routes", exact=True).click()
    page.get_by_role("link", name="Set the default route").click()
    page.get_by_role("dialog").get_by_role("button", name="Set the default route").click()
    expect(page.get_by_role("row", name=re.compile("Everything else"))).to_contain_text("strait")
    ask("22")
    expect(page.get_by_role("heading", name="It gets there")).to_be_visible()
    expect(page.locator("ol.steps")).to_contain_text(address)
    expect(page.locator("ol.steps li", has=page.locator(".tag"))).to_contain_text("customs: Lets SSH (TCP port 22) in from anywhere.")
    ask("80")
    expect(page.locator("ol.steps .fail")).to_contain_text("No rule of customs lets HTTP (TCP port 80) in from the internet.")


def test_a_network_from_beginning_to_end(fake: Running, open_context: Callable[..., BrowserContext]) -> None:
    page, networking = open_context().new_page(), f"{fake.url}/networking"
    sign_in(page, fake)
    vpc = make(page, f"{networking}/vpcs/new", "Create VPC", Name="journey", Range="10.77.0.0/16")
    expect(page.locator("#state")).to_have_text("Available")
    make(page, f"{networking}/subnets/new", "Create subnet", Name="harbour", Range="10.77.1.0/24")
    make(page, f"{networking}/internet-gateways/new?vpc=journey", "Create internet gateway", Name="strait")
    make(page, f"{networking}/security-groups/new", "Create security group", Name="customs")
    with_preset(page)

    place = "vpc_id=journey&subnet_id=harbour&security_groups=customs"
    ferry = make(page, f"{fake.url}/compute/instances/new?flavor=t3-micro&image=atonix-tiny&{place}", "Create instance", Name="ferry")
    expect(page.locator("#state")).to_have_text("Running")
    page.get_by_role("link", name="Network", exact=True).click()
    expect(page.get_by_role("row", name=re.compile("10.77.1.4"))).to_contain_text("customs")

    make(page, f"{networking}/elastic-ips/new", "Allocate elastic IP", Name="berth")
    page.locator(".head").get_by_role("link", name="Associate", exact=True).click()
    page.get_by_role("dialog").get_by_label("Id or name of that").fill("ferry")
    page.get_by_role("dialog").get_by_role("button", name="Associate").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    says_why(page, fake, vpc, page.locator("dl.props").first.locator("dd", has_text=re.compile(r"^100\.64\.")).inner_text())

    # What is in the way is named; then all of it goes.
    delete(page, f"{vpc}/actions/delete", "Delete VPC", "journey", everything=True)
    expect(page.get_by_role("alert")).to_contain_text("instance ferry")
    expect(page.get_by_role("alert")).to_contain_text("Terminate the instances first.")
    delete(page, f"{ferry}/actions/terminate", "Terminate instance", "ferry")
    expect(page.locator("#state")).to_have_text("Terminated")
    delete(page, f"{vpc}/actions/delete", "Delete VPC", "journey")
    for thing in ("subnet harbour", "internet gateway strait", "security group customs"):
        expect(page.get_by_role("alert")).to_contain_text(thing)
    delete(page, f"{vpc}/actions/delete", "Delete VPC", "journey", everything=True)
    expect(page.get_by_text("journey: delete has begun")).to_be_visible()
    expect(page.locator("#state")).to_have_text("Deleted")
    page.goto(f"{networking}/subnets?search=harbour")
    expect(page.get_by_text("No subnet matches")).to_be_visible()


def test_radios_without_a_choice_do_not_look_chosen(fake: Running, open_context: Callable[..., BrowserContext]) -> None:
    page = open_context().new_page()
    sign_in(page, fake)
    page.goto(f"{fake.url}/compute/instances/new")
    looks = "(each) => getComputedStyle(each).backgroundColor"
    first, other = page.locator("input[name=flavor]").nth(0), page.locator("input[name=flavor]").nth(1)
    unchosen = first.evaluate(looks)
    first.check()
    assert (first.evaluate(looks) != unchosen, other.evaluate(looks)) == (True, unchosen)
