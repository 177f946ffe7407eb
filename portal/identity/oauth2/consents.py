"""What users let applications do in their name, in plain words, and how they take it back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, select

from portal.identity.access import user_lock
from portal.identity.accounts import oneself
from portal.identity.models import User
from portal.identity.oauth2.models import LOOPBACK, OAuthClient, OAuthConsent, OAuthFamily, end_access
from portal.kernel.context import Context
from portal.kernel.errors import NotFound
from portal.kernel.ids import storable
from portal.kernel.operations import acting, refuse_restricted

VERBS = {
    "read": "See what there is in {}",
    "audit": "Read in {} what others did",
    "write": "Create and change things in {}",
    "delete": "Delete things in {}",
    "manage": "Manage people, access and settings in {}",
    "platform": "Administer {} for the whole platform",
    "*": "Do everything in {}",
}
EVERYTHING = "Do everything that you may do"


def in_words(scope: str) -> str:
    """What a scope lets an application do."""
    if scope in {"admin", "*:*"}:
        return EVERYTHING
    service, _, level = scope.partition(":")
    return VERBS[level].format("every service" if service == "*" else service)


@dataclass(frozen=True, slots=True)
class Allowed:
    """An application that a user lets act in their name, and when it last did."""

    consent: OAuthConsent
    last_used_at: datetime | None

    @property
    def client(self) -> OAuthClient:
        """The application."""
        return self.consent.client


def consent_covers(ctx: Context, client: OAuthClient, scopes: Sequence[str]) -> bool:
    """Whether the caller has allowed all of this to this application before."""
    found = ctx.db.get(OAuthConsent, (ctx.principal.user_id, client.id))
    return found is not None and set(scopes) <= set(found.scopes)


def may_skip_question(redirect_uri: str) -> bool:
    """Whether a yes of before is enough: on loopback any program can pretend to be the application, so there the user is asked each time."""
    return LOOPBACK.fullmatch(redirect_uri) is None


def consent_keep(ctx: Context, user: User, client_id: str, scopes: Sequence[str]) -> None:
    """Remember a yes, within the caller's transaction."""
    held = ctx.db.get(OAuthConsent, (user.id, client_id), populate_existing=True)
    if held is None:
        ctx.db.add(OAuthConsent(user_id=user.id, client_id=client_id, scopes=list(scopes)))
    else:
        held.scopes = list(dict.fromkeys([*held.scopes, *scopes]))
    ctx.db.flush()


def consents_of(ctx: Context) -> Sequence[Allowed]:
    """The applications that the caller lets act in their name, by name. Raises Forbidden for a credential that stands for less than the user."""
    refuse_restricted(ctx, "identity.oauth_consent.read")
    used = (
        select(func.max(OAuthFamily.last_used_at))
        .where(OAuthFamily.user_id == OAuthConsent.user_id, OAuthFamily.client_id == OAuthConsent.client_id)
        .correlate(OAuthConsent)
        .scalar_subquery()
    )
    query = select(OAuthConsent, used).join(OAuthConsent.client).where(OAuthConsent.user_id == ctx.principal.user_id)
    return [Allowed(consent, at) for consent, at in ctx.db.execute(query.order_by(OAuthClient.name, OAuthClient.id))]


def consent_revoke(ctx: Context, client_id: str) -> None:
    """Take back what the caller allowed an application; every token that it holds for them ends. Raises NotFound."""
    client_id = storable(client_id[:64])
    with acting(ctx, "identity.oauth_consent.delete", oneself(ctx), details={"client_id": client_id}):
        user_id = ctx.principal.user_id or ""
        user_lock(ctx.db, user_id)
        mine = (OAuthConsent.user_id == user_id, OAuthConsent.client_id == client_id)
        if ctx.db.scalar(delete(OAuthConsent).where(*mine).returning(OAuthConsent.client_id)) is None:
            raise NotFound("You have allowed nothing to such an application.")
        end_access(ctx.db, user_id=user_id, client_id=client_id)
