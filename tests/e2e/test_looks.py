"""Every page in both themes and on a phone: nothing serious for axe, nothing wider than the screen, no script errors."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pyotp
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from portal.kernel.ids import new_id
from portal.kernel.policy_documents import VERSION
from tests.e2e.conftest import Running, sign_in
from tests.e2e.looks import SCREENS, Looked, Post

pytestmark = pytest.mark.e2e
PAGES = (
    "/", "/compute/instances", "/compute/instances/new", "/compute/images", "/compute/images/new", "/compute/images/atonix-tiny", "/compute/flavors",
    "/compute/flavors/t3-micro", "/compute/key-pairs", "/compute/key-pairs/new", "/jobs", "/audit", "/quotas", "/quotas/requests", "/quotas/requests/new",
    "/alerts", "/projects", "/users", "/account", "/account/password", "/account/factors", "/confirm", "/security/policies", "/security/policies/new",
    "/security/groups", "/security/roles", "/security/roles/new", "/security/roles/role-developer/permissions", "/security/simulator", "/security/unused", "/security/sign-in", "/security/service-accounts", "/security/applications",
    "/search?q=tiny", "/api/v1/docs", "/nowhere",
)  # fmt: skip
OF_INSTANCE = ("", "/console", "/metrics", "/activity", "/actions/stop", "/actions/terminate", "/actions/update", "/actions/rebuild")


def instance_of(page: Page, portal: Running) -> str:
    """The address of an instance, made at the first call."""
    page.goto(f"{portal.url}/compute/instances")
    if page.locator("tbody th a").count() == 0:
        page.goto(f"{portal.url}/compute/instances/new?name=seen&flavor=t3-micro&image=atonix-tiny")
        page.locator("#summary").get_by_role("button", name="Create instance").click()
        expect(page.locator("#state")).to_have_text("Running")
        return page.url
    return portal.url + str(page.locator("tbody th a").first.get_attribute("href"))


def access_pages(post: Post) -> list[str]:
    """A service account with a key, a role with a session, an application, and the question whether that may act in the user's name."""
    account = post("/api/v1/service-accounts", {"name": f"deploy-{new_id('x')}", "role": "developer"})["id"]
    post(f"/api/v1/service-accounts/{account}/keys", {"name": "build server", "scopes": ["compute:write", "*:read"]})
    callback = "https://reports.example.org/callback"
    client = post("/api/v1/oauth-clients", {"name": "Reports", "redirect_uris": [callback], "scopes": ["compute:read", "*:write"]})["client_id"]
    role_body = {"name": new_id("operator"), "trust_policy": {"principals": [{"type": "user", "id": "admin"}]}}
    role = post("/api/v1/security/roles", role_body)["id"]
    post(f"/api/v1/security/roles/{role}/assume", {"session_name": "night shift"})
    tabs = ("", "/permissions", "/trust", "/sessions", "/assume", "/actions/update", "/actions/delete")
    of_role = [f"/security/roles/{role}{rest}" for rest in tabs]
    question = {"response_type": "code", "client_id": client, "redirect_uri": callback, "code_challenge": "x" * 43, "code_challenge_method": "S256"}
    return [*of_role, f"/security/service-accounts/{account}", f"/security/applications/{client}", f"/oauth2/authorize?{urlencode(question)}"]


def person_pages(post: Post) -> tuple[str, list[str]]:
    """(address of a user who has yet to choose a password, pages about them, a policy of theirs and what they may do)."""
    name = new_id("ines").lower()
    user = post("/api/v1/users", {"username": name, "email": f"{name}@example.org"})["user_id"]
    statement = {"Sid": "Read", "Effect": "Allow", "Action": ["compute.instance.read", "compute.instance.stop"], "Resource": "*"}
    document = {"Version": VERSION, "Statement": [statement]}
    policy = post("/api/v1/security/policies", {"name": f"watch-{name}"[:60], "document": document})["id"]
    project = post("/api/v1/projects", {"name": new_id("team")})["id"]
    post(f"/api/v1/projects/{project}/members", {"username": name, "role": "viewer"})
    question = urlencode({"user": name, "action": "compute.instance.stop"})
    tabs = [f"/security/policies/{policy}{tab}" for tab in ("", "/versions", "/holders", "/actions/update")]
    return f"/users/{user}", [f"/users/{user}/delete", *tabs, f"/security/simulator?{question}"]


@SCREENS
def test_every_page(fake: Running, post: Post, screen: Callable[[], Page], tmp_path: Path) -> None:
    page, looked = screen(), Looked(tmp_path)
    sign_in(page, fake)
    instance = instance_of(page, fake)
    for path in [*(fake.url + each for each in (*PAGES, *access_pages(post))), *(instance + each for each in OF_INSTANCE)]:
        page.goto(path)
        looked.at(page)
    assert looked.faults == []


@SCREENS
def test_the_first_steps_of_a_new_user(fake: Running, post: Post, screen: Callable[[], Page], tmp_path: Path) -> None:
    """What an administrator sees of them, their invitation, their first app with its recovery codes, and the profile as they set it."""
    page, looked = screen(), Looked(tmp_path)
    sign_in(page, fake)
    user, others = person_pages(post)
    for path in (user, *others, user):
        page.goto(fake.url + path)
        looked.at(page)
    page.get_by_role("button", name="Invite by link").click()
    expect(page.locator("main")).to_contain_text("/invite#")
    looked.at(page)
    link = re.search(r"http://[^\s\"]+/invite#[\w-]+", page.locator("main").inner_text())
    assert link is not None
    mine = screen()
    mine.goto(link.group(0))
    looked.at(mine)
    for field in ("new", "again"):
        mine.locator(f"#{field}").fill("a long enough passphrase")
    mine.get_by_role("button", name="Set password and sign in").click()
    expect(mine).to_have_url(f"{fake.url}/")
    mine.goto(f"{fake.url}/account/factors")
    mine.get_by_role("button", name="Add an app").click()
    looked.at(mine)
    mine.get_by_label("Code").fill(pyotp.TOTP(str(mine.locator("[data-copy]").first.get_attribute("data-copy"))).now())
    mine.get_by_role("button", name="Take into use").click()
    expect(mine.get_by_role("heading", level=1)).to_have_text("Recovery codes")
    looked.at(mine)
    mine.goto(f"{fake.url}/account")
    mine.get_by_label("Language").select_option("en-US")
    mine.get_by_label("Time zone").select_option("America/Argentina/Buenos_Aires")
    mine.get_by_role("button", name="Save preferences").click()
    expect(mine.locator("html")).to_have_attribute("lang", "en-US")
    looked.at(mine)
    assert looked.faults == []


def test_a_viewer_reads_why_not(fake: Running, open_context: Callable[..., BrowserContext]) -> None:
    page = open_context().new_page()
    sign_in(page, fake)
    page.goto(f"{fake.url}/compute/flavors/t3-micro")
    page.get_by_role("button", name="Actions").click()
    expect(page.locator("#row-actions")).to_contain_text("Retire")
    instance = instance_of(page, fake)
    page.goto(instance)
    page.get_by_role("button", name="Actions").click()
    expect(page.locator("#row-actions")).to_contain_text("start needs it to be error or stopped")
