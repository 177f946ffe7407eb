"""Every page in both themes and on a phone: nothing serious for axe, nothing wider than the screen, no script errors."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import requests
from playwright.sync_api import BrowserContext, Page, expect

from portal.settings import ROOT
from tests.e2e.conftest import Running, serving, sign_in
from tests.support.databases import ADMIN_PASSWORD, settings_for
from tests.support.servers import free_port

pytestmark = pytest.mark.e2e
AXE = ROOT / ".venv/frontend/node_modules/axe-core/axe.min.js"
FINDINGS = """() => axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations
  .filter((each) => ["serious", "critical"].includes(each.impact))
  .map((each) => `${each.id}: ${each.nodes.map((node) => node.html).slice(0, 3).join(" ")}`))"""
PAGES = (
    "/", "/compute/instances", "/compute/instances/new", "/compute/images", "/compute/images/new", "/compute/images/atonix-tiny", "/compute/flavors",
    "/compute/flavors/t3-micro", "/compute/key-pairs", "/compute/key-pairs/new", "/jobs", "/audit", "/quotas", "/quotas/requests", "/quotas/requests/new",
    "/alerts", "/projects", "/users", "/account", "/account/password", "/account/factors", "/confirm", "/security/policies", "/security/policies/new",
    "/security/groups", "/security/roles", "/security/roles/new", "/security/roles/role-developer/permissions", "/security/simulator", "/security/unused", "/security/sign-in", "/security/service-accounts", "/security/applications",
    "/search?q=tiny", "/api/v1/docs", "/nowhere",
)  # fmt: skip
OF_INSTANCE = ("", "/console", "/metrics", "/activity", "/actions/stop", "/actions/terminate", "/actions/update", "/actions/rebuild")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A portal whose machines are not real: only its pages matter here."""
    settings = settings_for(tmp_path_factory.mktemp("looks"), portal_port=free_port(), metrics_port=free_port(), metrics_interval_s=1)
    yield from serving(settings)


def instance_of(page: Page, portal: Running) -> str:
    """The address of an instance, made at the first call."""
    page.goto(f"{portal.url}/compute/instances")
    if page.locator("tbody th a").count() == 0:
        page.goto(f"{portal.url}/compute/instances/new?name=seen&flavor=t3-micro&image=atonix-tiny")
        page.locator("#summary").get_by_role("button", name="Create instance").click()
        expect(page.locator("#state")).to_have_text("Running")
        return page.url
    return portal.url + str(page.locator("tbody th a").first.get_attribute("href"))


def access_pages(portal: Running) -> list[str]:
    """A service account with a key, a role with a session, an application, and the question whether that may act in the user's name."""

    def post(path: str, body: dict[str, object], token: str = "") -> dict[str, str]:
        answer = requests.post(f"{portal.url}{path}", json=body, headers={"Authorization": f"Token {token}"} if token else {}, timeout=20)
        assert answer.ok, answer.text
        found: dict[str, str] = answer.json()
        return found

    token = post("/api-token-auth/", {"username": "admin", "password": ADMIN_PASSWORD})["token"]
    account = post("/api/v1/service-accounts", {"name": f"deploy-{token[-6:]}".strip("-_"), "role": "developer"}, token)["id"]
    post(f"/api/v1/service-accounts/{account}/keys", {"name": "build server", "scopes": ["compute:write", "*:read"]}, token)
    callback = "https://reports.example.org/callback"
    client = post("/api/v1/oauth-clients", {"name": "Reports", "redirect_uris": [callback], "scopes": ["compute:read", "*:write"]}, token)[
        "client_id"
    ]
    role_body = {"name": f"Operator {token[-6:]}", "trust_policy": {"principals": [{"type": "user", "id": "admin"}]}}
    role = post("/api/v1/security/roles", role_body, token)["id"]
    post(f"/api/v1/security/roles/{role}/assume", {"session_name": "night shift"}, token)
    of_role = [
        f"/security/roles/{role}{rest}" for rest in ("", "/permissions", "/trust", "/sessions", "/assume", "/actions/update", "/actions/delete")
    ]
    question = {"response_type": "code", "client_id": client, "redirect_uri": callback, "code_challenge": "x" * 43, "code_challenge_method": "S256"}
    return [*of_role, f"/security/service-accounts/{account}", f"/security/applications/{client}", f"/oauth2/authorize?{urlencode(question)}"]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 320)])
def test_every_page(fake: Running, open_context: Callable[..., BrowserContext], theme: str, width: int, tmp_path: Path) -> None:
    assert AXE.is_file(), "set-up installs axe-core"
    page = open_context(color_scheme=theme, reduced_motion="reduce", viewport={"width": width, "height": 800}).new_page()
    sign_in(page, fake)
    instance = instance_of(page, fake)
    faults = []
    for path in [*(fake.url + each for each in (*PAGES, *access_pages(fake))), *(instance + each for each in OF_INSTANCE)]:
        page.goto(path)
        # Nothing is pointed at: colours of a hovered button are not what is looked at.
        page.mouse.move(0, 0)
        # Through the debugger: the page's own rules would not let a script in.
        page.evaluate(AXE.read_text())
        found = page.evaluate(FINDINGS)
        wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if found or wider > 0:
            page.screenshot(path=tmp_path / f"{len(faults)}.png", full_page=True)
            faults.append((path, wider, found))
    assert faults == []


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
