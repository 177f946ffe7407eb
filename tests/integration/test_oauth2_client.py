"""A client library that knows nothing of the portal but its address signs a user in, over a real socket, and the browser is a real one."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from authlib.common.errors import AuthlibBaseError
from authlib.common.security import generate_token
from authlib.integrations.requests_client import OAuth2Session
from joserfc import jwt
from joserfc.jwk import KeySet
from playwright.sync_api import expect, sync_playwright
from sqlalchemy.orm import Session, sessionmaker

from portal.settings import Settings
from tests.support.databases import ADMIN_PASSWORD
from tests.support.processes import portal_process
from tests.support.servers import answers, free_port, until

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture
def portal(settings: Settings, database: sessionmaker[Session]) -> Iterator[str]:
    """Address of a portal that serves."""
    del database
    serving = settings.model_copy(update={"portal_port": free_port()})
    with portal_process(serving, "serve"):
        until(lambda: answers(serving.portal_port), within_s=60, what="the portal answers")
        yield f"http://127.0.0.1:{serving.portal_port}"


@pytest.fixture
def arrivals() -> Iterator[tuple[str, list[str]]]:
    """An application on the user's own machine: its address without a port, the real one, and what browsers brought there."""
    found: list[str] = []

    class Callback(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"Back at the application.")

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Callback)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/callback", found
    server.shutdown()
    thread.join()
    server.server_close()


def registered(portal: str, **registration: Any) -> dict[str, Any]:
    """An application of the administrator's."""
    session = requests.post(f"{portal}/api/v1/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD}, timeout=20).json()["access_token"]
    body = {"name": "Laptop tool", "scopes": ["compute:read", "*:read"], **registration}
    made = requests.post(f"{portal}/api/v1/oauth-clients", json=body, headers={"Authorization": f"Bearer {session}"}, timeout=20)
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


def allow_in_browser(address: str) -> None:
    """Sign in, read the question, say yes, and arrive at the application."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page()
        page.goto(address)
        page.get_by_label("User name or e-mail").fill("admin")
        page.get_by_label("Password", exact=True).fill(ADMIN_PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Allow Laptop tool to act in your name?")
        page.get_by_role("button", name="Allow").click()
        expect(page.locator("body")).to_have_text("Back at the application.")
        chromium.close()


@pytest.mark.parametrize("is_public", [False, True])
def test_a_library_signs_a_user_in(portal: str, arrivals: tuple[str, list[str]], is_public: bool) -> None:
    callback, found = arrivals
    made = registered(portal, redirect_uris=[re.sub(r":\d+/", "/", callback)], is_public=is_public)
    server = requests.get(f"{portal}/.well-known/oauth-authorization-server", timeout=20).json()
    assert server["issuer"] == portal
    client = OAuth2Session(
        made["client_id"], made["client_secret"], redirect_uri=callback, scope="compute:read", code_challenge_method="S256",
        token_endpoint_auth_method="none" if is_public else "client_secret_basic", token_endpoint=server["token_endpoint"],
        revocation_endpoint=server["revocation_endpoint"],
    )  # fmt: skip
    verifier = generate_token(48)
    address, state = client.create_authorization_url(server["authorization_endpoint"], code_verifier=verifier)
    allow_in_browser(address)
    arrived = next(path for path in found if path.startswith("/callback"))
    assert parse_qs(urlsplit(arrived).query)["iss"] == [portal]
    came_back = callback.removesuffix("/callback") + arrived
    with pytest.raises(AuthlibBaseError, match="mismatching_state"):
        client.fetch_token(server["token_endpoint"], authorization_response=came_back, state="of somebody else", code_verifier=verifier)
    token = client.fetch_token(server["token_endpoint"], authorization_response=came_back, state=state, code_verifier=verifier)
    keys = KeySet.import_key_set(requests.get(server["jwks_uri"], timeout=20).json())
    claims = jwt.decode(token["access_token"], keys, algorithms=["ES256"]).claims
    assert (claims["iss"], claims["client_id"], claims["scope"]) == (portal, made["client_id"], "compute:read")
    assert client.get(f"{portal}/api/v1/auth/me", timeout=20).json()["username"] == "admin"
    assert client.get(f"{portal}/api/v1/compute/instances", timeout=20).status_code == 200
    assert client.post(f"{portal}/api/v1/compute/key-pairs", json={"name": "x"}, timeout=20).status_code == 403
    before = dict(client.token)
    client.refresh_token(server["token_endpoint"])
    assert client.token["refresh_token"] != before["refresh_token"]
    assert client.get(f"{portal}/api/v1/auth/me", timeout=20).status_code == 200
    client.revoke_token(server["revocation_endpoint"], token=client.token["refresh_token"])
    assert client.get(f"{portal}/api/v1/auth/me", timeout=20).status_code == 401


def test_a_library_gets_a_token_for_a_script(portal: str) -> None:
    session = requests.post(f"{portal}/api/v1/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD}, timeout=20).json()["access_token"]
    headers = {"Authorization": f"Bearer {session}"}
    robot = requests.post(f"{portal}/api/v1/service-accounts", json={"name": "robot", "role": "developer"}, headers=headers, timeout=20).json()
    made = registered(portal, grants=["client_credentials"], service_account_id=robot["id"])
    client = OAuth2Session(made["client_id"], made["client_secret"], scope="compute:read", token_endpoint_auth_method="client_secret_post")
    client.fetch_token(f"{portal}/oauth2/token", grant_type="client_credentials")
    assert client.get(f"{portal}/api/v1/auth/me", timeout=20).json()["username"] == "robot"
