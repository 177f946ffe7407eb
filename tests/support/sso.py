"""Signing in at a provider as a browser does, step by step."""

from typing import Any

from flask.testing import FlaskClient
from joserfc import jwt
from joserfc.jwk import ECKey
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.test import TestResponse

from portal.http.request import SESSION_COOKIE
from portal.identity.models import User
from tests.support.openid import CLIENT, SECRET, Liar

RULES = [
    {"group": "cloud-admins", "platform_role": "platform_admin"},
    {"group": "builders", "project": "default", "role": "developer"},
    {"group": "leads", "project": "default", "role": "project_admin"},
    {"group": "builders", "project": "no such project", "role": "developer"},
]


def provider(liar: Liar, **more: Any) -> dict[str, Any]:
    return {"name": "staff", "label": "Staff", "issuer": liar.issuer, "client_id": CLIENT, "client_secret": SECRET, "groups": RULES, **more}


def away(client: FlaskClient, **query: str) -> TestResponse:
    return client.get("/sso/staff", query_string=query)


def back(client: FlaskClient, liar: Liar, sent: TestResponse, **other: str) -> TestResponse:
    return client.get("/sso/staff/callback", query_string={**liar.authorize(sent.location), **other})


def enter(client: FlaskClient, liar: Liar, **query: str) -> TestResponse:
    return back(client, liar, away(client, **query))


def signed_in(client: FlaskClient) -> bool:
    return client.get_cookie(SESSION_COOKIE) is not None


def user_of(database: sessionmaker[Session], username: str = "ines") -> User | None:
    with database() as session:
        return session.scalars(select(User).where(User.username == username)).first()


def forged(claims: dict[str, Any]) -> str:
    other = ECKey.generate_key("P-256", {"kid": "first"})
    return jwt.encode({"alg": "ES256", "kid": "first"}, claims, other)
