"""Ways in with a browser: a certified OpenID provider, passkeys of a virtual key, a code of an app; and that what comes after each looks right."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyotp
import pytest
import yaml
from playwright.sync_api import BrowserContext, Page, expect

from portal.settings import ROOT
from tests.e2e.conftest import Running, serving
from tests.support.databases import ADMIN_PASSWORD, settings_for
from tests.support.openid import SECRET
from tests.support.processes import kill
from tests.support.servers import answers, free_port, until

pytestmark = pytest.mark.e2e
NODE, MODULE = ROOT / ".venv/tools/bin/node", ROOT / ".venv/frontend/node_modules/oidc-provider/lib/index.js"
KEY = {
    "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True, "isUserVerified": True,
    "automaticPresenceSimulation": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A portal at a host name, for which browsers make passkeys, and a provider of single sign-on beside it."""
    assert MODULE.is_file(), "set-up installs oidc-provider"
    data, port, provider_port = tmp_path_factory.mktemp("sign-in"), free_port(), free_port()
    config = data / "sso.yaml"
    staff = {
        "name": "staff", "label": "Staff", "issuer": f"http://localhost:{provider_port}", "client_id": "portal", "scopes": "openid profile email groups",
        "client_secret": SECRET, "groups": [{"group": "builders", "project": "default", "role": "developer"}],
    }  # fmt: skip
    config.write_text(yaml.safe_dump({"providers": [staff]}))
    settings = settings_for(data, portal_port=port, metrics_port=free_port(), sso_config=str(config))
    command = [str(NODE), str(ROOT / "tests/support/provider.mjs"), str(MODULE), str(provider_port), f"http://localhost:{port}", SECRET]
    with (data / "provider.log").open("ab") as out:
        provider = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            until(lambda: answers(provider_port), within_s=20, what="the provider answers")
            yield from serving(settings)
        finally:
            kill(provider)


def url(portal: Running, path: str) -> str:
    return f"http://localhost:{portal.settings.portal_port}{path}"


def sign_in(page: Page, portal: Running) -> None:
    page.goto(url(portal, "/login"))
    page.get_by_label("User name or e-mail").fill("admin")
    page.get_by_label("Password", exact=True).fill(ADMIN_PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()


def sign_out(page: Page, portal: Running) -> None:
    page.goto(url(portal, "/account"))
    page.get_by_role("button", name="Account of").click()
    page.get_by_role("button", name="Sign out").click()


def beside(context: BrowserContext) -> BrowserContext:
    """The same, without the fonts that the provider's pages ask the Internet for."""
    context.route(re.compile(r"^https:"), lambda route: route.fulfill(status=204))
    return context


def through_provider(page: Page, portal: Running, name: str) -> None:
    page.goto(url(portal, "/login?next=/account"))
    page.get_by_role("link", name="Continue with Staff").click()
    page.get_by_placeholder("Enter any login").fill(name)
    page.get_by_placeholder("and password").fill("any")
    page.get_by_role("button", name="Sign-in").click()
    page.get_by_role("button", name="Continue").click()
    expect(page).to_have_url(url(portal, "/account"))


def test_in_and_out_through_a_provider(portal: Running, open_context: Callable[..., BrowserContext]) -> None:
    page = beside(open_context()).new_page()
    through_provider(page, portal, "ines+builders+unknown")
    expect(page.locator(".head")).to_contain_text("ines, ines@provider.example")
    expect(page.get_by_role("region", name="Linked accounts")).to_contain_text("Staff")
    page.goto(url(portal, "/compute/instances/new"))
    expect(page.get_by_label("Name", exact=True)).to_be_visible()
    sign_out(page, portal)
    page.get_by_role("button", name="Yes, sign me out").click()
    expect(page).to_have_url(re.compile(re.escape(url(portal, "/login"))))
    page.goto(url(portal, "/account"))
    expect(page).to_have_url(url(portal, "/login?next=%2Faccount"))


def test_the_provider_ends_the_session(portal: Running, open_context: Callable[..., BrowserContext]) -> None:
    context = beside(open_context())
    page, there = context.new_page(), context.new_page()
    through_provider(page, portal, "tom+builders")
    issuer = yaml.safe_load(Path(portal.settings.sso_config).read_text())["providers"][0]["issuer"]
    there.goto(f"{issuer}/session/end")
    there.get_by_role("button", name="Yes, sign me out").click()
    expect(there.locator("body")).to_contain_text("Success")
    page.goto(url(portal, "/account"))
    expect(page).to_have_url(url(portal, "/login?next=%2Faccount"))


def test_a_passkey_and_an_app(portal: Running, open_context: Callable[..., BrowserContext]) -> None:
    context = open_context()
    page = context.new_page()
    debugger = context.new_cdp_session(page)
    debugger.send("WebAuthn.enable")
    debugger.send("WebAuthn.addVirtualAuthenticator", {"options": KEY})
    sign_in(page, portal)
    page.goto(url(portal, "/account/factors"))
    page.get_by_role("link", name="Add a passkey").click()
    page.get_by_label("Name").fill("Laptop")
    page.get_by_role("button", name="Make the passkey").click()
    expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
    expect(page.locator(".codes li")).to_have_count(10)
    page.get_by_role("link", name="I have kept them").click()
    expect(page.get_by_role("row", name="Laptop")).to_be_visible()

    page.get_by_role("button", name="Add an app").click()
    secret = str(page.locator("[data-copy]").get_attribute("data-copy"))
    expect(page.locator("img.qr")).to_be_visible()
    page.get_by_label("Code").fill("000000")
    page.get_by_role("button", name="Take into use").click()
    expect(page.locator("#code-error")).to_contain_text("is not what the app shows now")
    page.get_by_label("Code").fill(pyotp.TOTP(secret).now())
    page.get_by_role("button", name="Take into use").click()
    expect(page.get_by_role("row", name="Authenticator app")).to_be_visible()

    sign_out(page, portal)
    page.goto(url(portal, "/login?next=/projects"))
    page.get_by_role("button", name="Use a passkey").click()
    expect(page).to_have_url(url(portal, "/projects"))

    sign_out(page, portal)
    sign_in(page, portal)
    expect(page.get_by_role("heading", name="Second factor")).to_be_visible()
    page.get_by_role("button", name="Use a passkey").click()
    expect(page).to_have_url(url(portal, "/"))
