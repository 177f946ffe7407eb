"""An application under test: registered, and talking to the OAuth2 server as applications do."""

import base64
import hashlib
import html
import re
import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.support.web import Api, csrf_of

CALLBACK = "https://app.example.org/callback"
ISSUER = "http://localhost"


def challenge_of(verifier: str) -> str:
    """The S256 challenge of a verifier."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


@dataclass
class Application:
    """A registered application."""

    app: Flask
    client_id: str
    secret: str
    redirect_uri: str = CALLBACK
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    def question(self, **changes: Any) -> dict[str, Any]:
        """Parameters of an authorization request; a change to None leaves one out."""
        asked = {
            "response_type": "code", "client_id": self.client_id, "redirect_uri": self.redirect_uri, "scope": "compute:read", "state": "s-123 &=",
            "code_challenge": challenge_of(self.verifier), "code_challenge_method": "S256",
        }  # fmt: skip
        return {name: value for name, value in {**asked, **changes}.items() if value is not None}

    def ask(self, browser: FlaskClient, **changes: Any) -> TestResponse:
        """The user's browser comes with an authorization request."""
        return browser.get(f"/oauth2/authorize?{urlencode(self.question(**changes), doseq=True)}")

    def decide(self, browser: FlaskClient, page: TestResponse, decision: str = "allow", **changes: str) -> TestResponse:
        """The user answers the page as it stands."""
        fields = {name: html.unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text)}
        return browser.post("/oauth2/authorize", data={**fields, "csrf_token": csrf_of(page), "decision": decision, **changes})

    def code(self, browser: FlaskClient, **changes: Any) -> str:
        """A code that a user allowed."""
        answer = self.ask(browser, **changes)
        if answer.status_code == 200:
            answer = self.decide(browser, answer)
        assert answer.status_code == 303, answer.text
        return said_in(answer)["code"]

    def post(self, path: str, data: dict[str, Any], *, basic: bool = True, client: FlaskClient | None = None) -> TestResponse:
        """Ask an endpoint directly, showing who asks."""
        headers = {}
        if self.secret and basic:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{self.client_id}:{self.secret}".encode()).decode()
        else:
            data = {"client_id": self.client_id, **({"client_secret": self.secret} if self.secret else {}), **data}
        return (client or self.app.test_client()).post(path, data=data, headers=headers)

    def exchange(self, code: str, **changes: Any) -> TestResponse:
        """Trade a code for tokens."""
        data = {"grant_type": "authorization_code", "code": code, "redirect_uri": self.redirect_uri, "code_verifier": self.verifier, **changes}
        return self.post("/oauth2/token", {name: value for name, value in data.items() if value is not None})

    def refresh(self, token: str, **more: Any) -> TestResponse:
        """Trade a refresh token for new tokens."""
        return self.post("/oauth2/token", {"grant_type": "refresh_token", "refresh_token": token, **more})

    def tokens(self, browser: FlaskClient, **changes: Any) -> dict[str, Any]:
        """The whole way: what the user allowed, as tokens."""
        answer = self.exchange(self.code(browser, **changes))
        assert answer.status_code == 200, answer.json
        return answer.json

    def me(self, access_token: str) -> TestResponse:
        """Who the API takes the bearer of a token for."""
        return self.get("/api/v1/auth/me", access_token)

    def get(self, path: str, access_token: str) -> TestResponse:
        """GET with an access token."""
        return self.app.test_client().get(path, headers={"Authorization": f"Bearer {access_token}"})


def said_in(answer: TestResponse) -> dict[str, str]:
    """Parameters of the address that a browser is sent to."""
    return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["Location"]).query, keep_blank_values=True).items()}


def register(api: Api, app: Flask, **changes: Any) -> Application:
    """Register an application and give it its secret."""
    body = {
        "name": "Reports",
        "redirect_uris": [CALLBACK],
        "grants": ["authorization_code", "refresh_token"],
        "scopes": ["compute:read", "*:read"],
        **changes,
    }
    made = (api.signed_in() if body.get("service_account_id") else api).post("/oauth-clients", body)
    assert made.status_code == 201, made.json
    return Application(app, made.json["client_id"], made.json["client_secret"] or "")
