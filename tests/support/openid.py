"""An OpenID provider that lies on demand: it gives what a test says, signed with the key that a test says."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

CLIENT, SECRET = "portal", "only-for-tests-0123456789"
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"


@dataclass
class Liar:
    """Whom it vouches for next, and in what it is wrong."""

    issuer: str = ""
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "first", "use": "sig", "alg": "ES256"}))
    published: list[ECKey] = field(default_factory=list)
    claims: dict[str, Any] = field(default_factory=lambda: {"sub": "u-1", "preferred_username": "ines", "email": "ines@example.net"})
    wrong: dict[str, Any] = field(default_factory=dict)
    sign: Callable[[dict[str, Any]], str] | None = None
    called_issuer: str = ""
    is_down: bool = False
    has_keys: bool = True
    promises_iss: bool = False
    requests: list[str] = field(default_factory=list)
    asked: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def authorize(self, url: str) -> dict[str, str]:
        """What a browser brings back from the address that the portal sent it to."""
        self.asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        return {"code": f"code-{time.monotonic_ns()}", "state": self.asked["state"], "iss": self.issuer}

    def id_token(self) -> str:
        """Signed with its key, unless a test signs it."""
        moment = int(time.time())
        claims = {
            "iss": self.issuer, "aud": CLIENT, "iat": moment, "exp": moment + 300, "auth_time": moment, "nonce": self.asked.get("nonce"), **self.claims,
            **self.wrong,
        }  # fmt: skip
        return self.signed({name: value for name, value in claims.items() if value is not None})

    def logout_token(self, **claims: Any) -> str:
        """What it sends when a session there has ended; None leaves a claim out."""
        moment = int(time.time())
        base = {"iss": self.issuer, "aud": CLIENT, "iat": moment, "exp": moment + 120, "jti": str(time.monotonic_ns()), "events": {LOGOUT_EVENT: {}}}
        typ = claims.pop("typ", "logout+jwt")
        return self.signed({name: value for name, value in {**base, **claims}.items() if value is not None}, typ=typ)

    def signed(self, claims: dict[str, Any], *, typ: str = "JWT") -> str:
        """As a compact token."""
        return self.sign(claims) if self.sign else jwt.encode({"alg": "ES256", "kid": self.key.kid, "typ": typ}, claims, self.key)

    def answer(self, path: str, form: dict[str, list[str]]) -> tuple[int, Any]:
        """(status, JSON) of a request."""
        self.requests.append(path)
        if self.is_down:
            return 500, {}
        if path == "/.well-known/openid-configuration":
            found = {
                "issuer": self.called_issuer or self.issuer, "authorization_endpoint": f"{self.issuer}/auth", "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/jwks", "end_session_endpoint": f"{self.issuer}/end",
                "id_token_signing_alg_values_supported": ["ES256", "HS256", "none"],
                "authorization_response_iss_parameter_supported": self.promises_iss,
            }  # fmt: skip
            return 200, found if self.has_keys else {name: value for name, value in found.items() if name != "jwks_uri"}
        if path == "/jwks":
            return 200, {"keys": [key.as_dict(private=False) for key in self.published or [self.key]]}
        if path == "/token":
            code, verifier = form["code"][0], form.get("code_verifier", [""])[0]
            if code in self.used or create_s256_code_challenge(verifier) != self.asked.get("code_challenge"):
                return 400, {"error": "invalid_grant"}
            self.used.add(code)
            return 200, {
                "access_token": "opaque-access-token",
                "token_type": "Bearer",
                **({"id_token": self.id_token()} if "nonce" in self.asked else {}),
            }
        return (200, self.claims) if path == "/user" else (404, {})


def shared_secret_token(claims: dict[str, Any]) -> str:
    """Signed with what provider and client share, which anybody who knows the client's secret can do."""
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))


@contextmanager
def lying_provider() -> Iterator[Liar]:
    """One that listens on loopback."""
    liar = Liar()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self, form: dict[str, list[str]]) -> None:
            status, body = liar.answer(urlsplit(self.path).path, form)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            self._reply(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    liar.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield liar
    server.shutdown()
    thread.join()
    server.server_close()
