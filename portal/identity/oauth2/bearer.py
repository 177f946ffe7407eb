"""Access tokens: JWT of RFC 9068, short-lived, worth nothing once their family is gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import JoseError
from sqlalchemy import update
from sqlalchemy.orm import Session

from portal.identity import iam
from portal.identity.accounts import SEEN_EVERY, SignedIn, behind, principal_of
from portal.identity.models import PERSON
from portal.identity.oauth2.keys import ALGORITHM, LEEWAY_S, public_key, signing_key
from portal.identity.oauth2.models import OAuthClient, OAuthFamily
from portal.identity.tokens import scopes_limit
from portal.kernel.context import Context, Limit
from portal.kernel.db import now, transaction
from portal.kernel.ids import is_storable, new_id
from portal.kernel.policy import Statement

TYPE = "at+jwt"
MAX_LENGTH = 4096
CREDENTIAL = "oauth:"
# Whatever it changed there would outlive the consent: accounts, who belongs where, and who may do what.
NO_SAY = (
    "identity:write", "identity:delete", "identity:manage", "identity.project.create", "identity.project.bound", "identity.user.create",
    "identity.user.update", "identity.user.delete", "identity.user.invite", "identity.user.sign_out", "identity.mfa.*", "identity.oauth_client.*",
    "security:manage", "security:platform", "core:platform",
)  # fmt: skip
DELEGATED = Limit(
    "What an application may do for somebody",
    (Statement("Everything", allows=True, actions=("*",)), Statement("NoSayInAccounts", allows=False, actions=NO_SAY)),
)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified access token says."""

    family_id: str
    client_id: str
    user_id: str
    scopes: tuple[str, ...]
    issued_at: int
    expires_at: int
    token_id: str


def looks_like_one(text: str) -> bool:
    """Whether a bearer token is a JWT: three parts, which no other token here has."""
    return text.count(".") == 2  # noqa: PLR2004 - header, payload, signature


def audience(issuer: str) -> str:
    """What access tokens of an issuer are for: its API."""
    return f"{issuer}/api"


def access_token(ctx: Context, issuer: str, family: OAuthFamily, scopes: Sequence[str]) -> tuple[str, int]:
    """Sign a token for a family, within the caller's transaction; gives it and how many seconds it holds."""
    seconds = ctx.settings.oauth2_access_token_minutes * 60
    moment = int(now().timestamp())
    claims = {
        "iss": issuer, "sub": family.user_id, "aud": audience(issuer), "client_id": family.client_id, "scope": " ".join(scopes),
        "jti": new_id("jti"), "iat": moment, "exp": moment + seconds, "family": family.id,
    }  # fmt: skip
    key = signing_key(ctx.db, ctx.settings)
    return jwt.encode({"alg": ALGORITHM, "typ": TYPE, "kid": key.kid}, claims, key, algorithms=[ALGORITHM]), seconds


def claims_of(session: Session, token: str, issuer: str) -> Claims | None:
    """What a token says, if it was signed here, for this API, and has not expired; None for anything else."""
    try:
        return _verified(session, token, issuer)
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _verified(session: Session, token: str, issuer: str) -> Claims | None:
    if len(token) > MAX_LENGTH:
        return None
    header = jws.extract_compact(token.encode("ascii")).headers()
    kid = header.get("kid")
    # Which key and which algorithm is never the token's choice: one algorithm, and a key of ours.
    if header.get("alg") != ALGORITHM or header.get("typ") != TYPE or not isinstance(kid, str) or not is_storable(kid):
        return None
    key = public_key(session, kid)
    if key is None:
        return None
    return _judged(jwt.decode(token, key, algorithms=[ALGORITHM]).claims, issuer)


def _judged(said: Mapping[str, Any], issuer: str) -> Claims | None:
    moment = now().timestamp()
    issued, expires = said["iat"], said["exp"]
    texts = [said[name] for name in ("family", "client_id", "sub", "scope", "jti")]
    if type(issued) is not int or type(expires) is not int or not all(isinstance(text, str) and is_storable(text) for text in texts):
        return None
    if said["iss"] != issuer or said["aud"] != audience(issuer) or expires + LEEWAY_S <= moment or issued - LEEWAY_S > moment:
        return None
    return Claims(said["family"], said["client_id"], said["sub"], tuple(said["scope"].split()), issued, expires, said["jti"])


def bearer_user(session: Session, token: str, issuer: str, *, source_ip: str) -> SignedIn | None:
    """Who is behind an access token, limited to its scopes; None if it does not hold, was revoked, or its user is disabled."""
    claims = claims_of(session, token, issuer)
    if claims is None or not claims.scopes:
        return None
    is_this = (OAuthFamily.id == claims.family_id) & (OAuthFamily.client_id == claims.client_id) & (OAuthFamily.user_id == claims.user_id)
    row, moment = behind(session, OAuthFamily, is_this), now()
    if row is None:
        return None
    family, user, revision = row
    if family.last_used_at is None or moment - family.last_used_at > SEEN_EVERY:
        _touch(session, family.id, moment, source_ip)
    limits = (scopes_limit(claims.scopes), *([DELEGATED] if user.kind == PERSON else []))
    principal = replace(principal_of(user, CREDENTIAL + claims.client_id), limits=limits)
    return SignedIn(user, iam.with_access(session, principal, revision))


def _touch(session: Session, family_id: str, moment: datetime, source_ip: str) -> None:
    with transaction(session):
        session.execute(update(OAuthFamily).where(OAuthFamily.id == family_id).values(last_used_at=moment, last_used_ip=source_ip))


def new_family(ctx: Context, client: OAuthClient, user_id: str, scopes: Sequence[str], *, refreshable: bool) -> OAuthFamily:
    """A family that lasts as long as what is issued first can be used or renewed."""
    holds = timedelta(days=ctx.settings.oauth2_refresh_token_days)
    if not refreshable:
        holds = timedelta(minutes=ctx.settings.oauth2_access_token_minutes, seconds=LEEWAY_S)
    family = OAuthFamily(client_id=client.id, user_id=user_id, scopes=list(scopes), expires_at=now() + holds)
    ctx.db.add(family)
    ctx.db.flush()
    return family
