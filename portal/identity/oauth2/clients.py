"""Registration of applications: their owner's own; platform admins see and end all of them."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select

from portal.identity.access import user_lock
from portal.identity.accounts import account_target, refuse_beyond, require_person
from portal.identity.models import SERVICE, User, digest
from portal.identity.oauth2.models import CODE, CREDENTIALS, GRANTS, LOOPBACK, REFRESH, OAuthClient, OAuthConsent, end_access
from portal.identity.tokens import check_scopes
from portal.kernel import audit
from portal.kernel.authz import Target, authorize, decide
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import Conflict, InvalidRequest, NotFound
from portal.kernel.ids import new_id, storable
from portal.kernel.operations import acting, refuse_restricted
from portal.kernel.projects import refuse_ending
from portal.kernel.proof import require_proof

READ = "identity.oauth_client.read"
EVERYWHERE = Target(None, label="applications of other people")
MAX_CLIENTS = 50
MAX_URIS = 10
MAX_URI = 1000
NAME_MAX = 100
SECRET_PREFIX = "atonix_app_"  # noqa: S105 - how a secret is recognised, not one
# Host and port, no user, no fragment, no wildcard, nothing that a browser reads otherwise than it is written.
HTTPS = re.compile(r"https://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[!-\[\]-~]*)?")
PORT = re.compile(r"https?://(?:\[[^\]]*\]|[^/:]*):([0-9]+)")
MAX_PORT = 65535
# Its secret, and an address that its codes go to, hold for longer than a token.
CHANGED = "What acts as a service account is registered, and registered applications are changed,"
URI_RULE = "must be https://…, or http:// on 127.0.0.1, [::1] or localhost, without a fragment, wildcard, quotes or user name"


@dataclass(frozen=True, slots=True)
class Registration:
    """What an application is registered with."""

    name: str
    redirect_uris: Sequence[str] = ()
    grants: Sequence[str] = (CODE, REFRESH)
    scopes: Sequence[str] = ()
    service_account_id: str = ""
    is_public: bool = False


def clients_of(ctx: Context) -> Sequence[OAuthClient]:
    """The caller's own applications, and for platform admins all, by name. Raises Forbidden for a credential that stands for less than the user."""
    query = select(OAuthClient).order_by(OAuthClient.name, OAuthClient.id)
    if not decide(ctx, READ, EVERYWHERE).allowed:
        refuse_restricted(ctx, READ)
        query = query.where(OAuthClient.owner_id == ctx.principal.user_id)
    return ctx.db.scalars(query).all()


def client_find(ctx: Context, client_id: str) -> OAuthClient:
    """An application of the caller's, for platform admins any. Raises NotFound."""
    found = ctx.db.get(OAuthClient, storable(client_id))
    everywhere = decide(ctx, READ, EVERYWHERE).allowed
    if not everywhere:
        refuse_restricted(ctx, READ)
    if found is None or not (everywhere or found.owner_id == ctx.principal.user_id):
        raise NotFound(f"There is no application {client_id[:80]} of yours.")
    return found


def client_create(ctx: Context, given: Registration) -> tuple[str, OAuthClient]:
    """Register an application; gives its secret, which is shown once and empty for a public one. Raises InvalidRequest, Forbidden or Conflict."""
    if given.service_account_id:
        require_person(ctx, CHANGED)
    require_proof(ctx)
    secret = "" if given.is_public else SECRET_PREFIX + secrets.token_urlsafe(32)
    client = OAuthClient(id=new_id("app"), owner_id=ctx.principal.user_id, secret_hash=digest(secret) if secret else "", created_at=now())
    with acting(ctx, "identity.oauth_client.create", _about(client.id, given.name), details=_details(given)):
        _check(ctx, given)
        # The owner, not the applications: two at once would each count those that were there before.
        user_lock(ctx.db, ctx.principal.user_id)
        held = ctx.db.scalars(select(OAuthClient.id).where(OAuthClient.owner_id == ctx.principal.user_id)).all()
        if len(held) >= MAX_CLIENTS:
            raise Conflict(f"You have {MAX_CLIENTS} applications, which is the most. Remove one first.", details={"limit": MAX_CLIENTS})
        _apply(ctx, client, given)
        ctx.db.add(client)
        ctx.db.flush()
    return secret, client


def client_update(ctx: Context, client_id: str, given: Registration) -> OAuthClient:
    """Register an application anew under its id; whether it is public stays. With another name or a new address everybody is asked anew.

    Raises NotFound, InvalidRequest or Forbidden.
    """
    client = client_find(ctx, client_id)
    require_person(ctx, CHANGED)
    with acting(ctx, "identity.oauth_client.update", _about(client.id, client.name), target=_target(ctx, client), details=_details(given)):
        row = ctx.db.get_one(OAuthClient, client_id, with_for_update={"of": OAuthClient}, populate_existing=True)
        _check(ctx, given)
        was = (row.name, set(row.redirect_uris))
        _apply(ctx, row, given)
        if row.name != was[0] or set(row.redirect_uris) - was[1]:
            # Who said yes did so to this name and these addresses.
            ctx.db.execute(delete(OAuthConsent).where(OAuthConsent.client_id == row.id))
            end_access(ctx.db, client_id=row.id)
        ctx.db.flush()
    return row


def client_rotate_secret(ctx: Context, client_id: str) -> tuple[str, OAuthClient]:
    """Give an application a new secret, shown once; the old one ends at once. Raises NotFound, Forbidden, or Conflict for a public one."""
    client = client_find(ctx, client_id)
    require_person(ctx, CHANGED)
    if client.is_public:
        raise Conflict(f"{client.name} is public: it has no secret.")
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    with acting(ctx, "identity.oauth_client.rotate_secret", _about(client.id, client.name), target=_target(ctx, client)):
        row = ctx.db.get_one(OAuthClient, client_id, with_for_update={"of": OAuthClient}, populate_existing=True)
        if row.service_account_id is not None:
            _account(ctx, row.service_account_id)
        row.secret_hash = digest(secret)
    return secret, row


def client_delete(ctx: Context, client_id: str) -> None:
    """Remove an application; every token of it ends. Raises NotFound or Forbidden."""
    require_proof(ctx)
    client = client_find(ctx, client_id)
    with acting(ctx, "identity.oauth_client.delete", _about(client.id, client.name), target=_target(ctx, client)):
        refuse_restricted(ctx, "identity.oauth_client.delete")
        row = ctx.db.get_one(OAuthClient, client_id, with_for_update={"of": OAuthClient}, populate_existing=True)
        ctx.db.delete(row)


def _apply(ctx: Context, client: OAuthClient, given: Registration) -> None:
    client.name, client.redirect_uris, client.scopes = given.name.strip(), list(given.redirect_uris), list(dict.fromkeys(given.scopes))
    client.grants = [grant for grant in GRANTS if grant in given.grants]
    client.service_account_id = _account(ctx, given.service_account_id).id if given.service_account_id else None
    if client.is_public and CREDENTIALS in client.grants:
        raise InvalidRequest.fields({"grants": ["client_credentials needs a secret; a public application has none."]})


def _account(ctx: Context, account_id: str) -> User:
    """A service account for an application to act as: whoever names it must be able to do all that it may, as with a key of it."""
    account = ctx.db.get(User, storable(account_id), with_for_update=True, populate_existing=True)
    may_see = account is not None and account.kind == SERVICE and decide(ctx, "identity.service_account.read", account_target(account)).allowed
    if account is None or not may_see:
        raise InvalidRequest.fields({"service_account_id": [f"There is no service account {account_id[:80]} here."]})
    authorize(ctx, "identity.service_account.create_key", account_target(account))
    refuse_beyond(ctx, account)
    refuse_ending(ctx.db, account.default_project_id)
    return account


def _check(ctx: Context, given: Registration) -> None:
    problems: dict[str, list[str]] = {}
    if not 0 < len(given.name.strip()) <= NAME_MAX or not given.name.isprintable():
        problems["name"] = [f"must have 1 to {NAME_MAX} printable characters."]
    if not given.grants or set(given.grants) - set(GRANTS):
        problems["grants"] = [f"must be one or more of {', '.join(GRANTS)}."]
    elif REFRESH in given.grants and CODE not in given.grants:
        problems["grants"] = [f"{REFRESH} goes with {CODE}."]
    wrong = [uri for uri in given.redirect_uris if not _is_redirect(uri)]
    if wrong or len(given.redirect_uris) > MAX_URIS:
        problems["redirect_uris"] = [f"{wrong[0][:80]} {URI_RULE}." if wrong else f"has more than {MAX_URIS} entries."]
    elif CODE in given.grants and not given.redirect_uris:
        problems["redirect_uris"] = [f"{CODE} needs at least one address."]
    if (CREDENTIALS in given.grants) is not bool(given.service_account_id):
        problems["service_account_id"] = [f"goes with {CREDENTIALS}, and {CREDENTIALS} needs it."]
    if not given.scopes:
        problems["scopes"] = ["must name at least one scope, such as compute:read."]
    if problems:
        raise InvalidRequest.fields(problems)
    check_scopes(ctx, given.scopes)


def _is_redirect(uri: str) -> bool:
    matches = HTTPS.fullmatch(uri) or LOOPBACK.fullmatch(uri)
    port = matches and PORT.match(uri)
    return matches is not None and len(uri) <= MAX_URI and not (port and int(port[1]) > MAX_PORT) and not set(uri) & set("#*\"'<>`{}|^\\")


def _target(ctx: Context, client: OAuthClient) -> Target | None:
    """None for the caller's own, which needs no permission."""
    return None if client.owner_id == ctx.principal.user_id else EVERYWHERE


def _about(client_id: str, name: str) -> audit.Subject:
    return audit.Subject("identity.oauth_client", client_id, name[:255])


def _details(given: Registration) -> dict[str, object]:
    return {
        "redirect_uris": [uri[:200] for uri in given.redirect_uris[:MAX_URIS]], "grants": list(given.grants)[:10], "scopes": list(given.scopes)[:50],
        "service_account_id": given.service_account_id[:64],
    }  # fmt: skip
