"""Access keys for the S3 interface: the secret is shown once and kept sealed, since signatures are checked with it. A key may do what its user may."""

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import cast

from sqlalchemy import Select, Table, bindparam, func, select, update
from sqlalchemy.orm import Session

from portal.identity import iam
from portal.identity.access import OF_TOKEN, user_lock
from portal.identity.accounts import SEEN_EVERY, account_target, checked_name, oneself, refuse_beyond
from portal.identity.factors import devices_of
from portal.identity.models import SERVICE, ApiToken, Membership, S3AccessKey, User
from portal.identity.sealed import seal, unseal_with
from portal.identity.tokens import scopes_limit
from portal.kernel import audit, limits, quota
from portal.kernel.authz import Target
from portal.kernel.context import Context, Grant, Principal
from portal.kernel.db import now, transaction
from portal.kernel.errors import Conflict, Forbidden, NotFound, QuotaExceeded, Unauthorized
from portal.kernel.idempotency import Fingerprint, refuse_repeat, remember_secret
from portal.kernel.ids import is_storable, storable
from portal.kernel.operations import acting, refuse_application
from portal.kernel.proof import require_proof
from portal.settings import Settings

PREFIX = "AP"
ID_LENGTH, SECRET_LENGTH = 20, 40
LETTERS = string.ascii_uppercase + "234567"
SECRET_LETTERS = string.ascii_letters + string.digits
NAME_MAX = 255


def _count(session: Session, user_id: str) -> int:
    return session.scalar(select(func.count()).where(S3AccessKey.user_id == user_id)) or 0


S3_KEYS = quota.declare(quota.Dimension("s3_keys", "S3 access keys", "", 10, counted=_count))


def s3_key_create(ctx: Context, owner: User, name: str = "", *, project_id: str | None = None) -> tuple[str, S3AccessKey]:
    """Make a key of the caller's own, or of a service account; gives its secret, which is shown once, and the row.

    New buckets belong to the named project, or to the owner's home. Raises InvalidRequest, Forbidden, and QuotaExceeded at the limit.
    """
    require_proof(ctx)
    name = checked_name(name or "S3", longest=NAME_MAX)
    key_id, secret = PREFIX + _random(LETTERS, ID_LENGTH - len(PREFIX)), _random(SECRET_LETTERS, SECRET_LENGTH)
    action, subject, target = _act(ctx, "create", owner)
    with acting(ctx, action, subject, target=target, details={"name": name, "access_key_id": key_id}):
        refuse_repeat(ctx, Fingerprint(action, None, "", {"owner": owner.id, "name": name, "project_id": project_id}))
        refuse_application(ctx)
        if ctx.principal.assumed is not None:
            raise Forbidden("A session of a role makes no keys: they would outlive it.")
        row = user_lock(ctx.db, owner.id)
        if not row.is_active:
            raise Conflict(f"{row.username} is disabled. Enable it first.")
        if row.id != ctx.principal.user_id and not ctx.principal.is_system:
            refuse_beyond(ctx, row)
        most, used = limits.user_limit(ctx.db, row.id, S3_KEYS), _count(ctx.db, row.id)
        if most is not None and used >= most:
            raise QuotaExceeded(S3_KEYS.name, limit=most, used=used, requested=1, of_user=True)
        made = S3AccessKey(
            id=key_id, user_id=row.id, project_id=project_id or row.default_project_id, name=name, sealed_secret=seal(ctx.settings, secret), origin=_origin(ctx)
        )  # fmt: skip
        ctx.db.add(made)
        ctx.db.flush()
        remember_secret(ctx, made.id)
    return secret, made


def _random(letters: str, length: int) -> str:
    return "".join(secrets.choice(letters) for _ in range(length))


def _origin(ctx: Context) -> str:
    """The token that makes a key, with which it ends. Raises Forbidden for one that was made by a token itself."""
    kind, _, token_id = ctx.principal.credential.partition(":")
    if kind != "token":
        return ""
    if (maker := ctx.db.get(ApiToken, token_id, populate_existing=True)) is None:
        raise Unauthorized("This token has ended.")
    if maker.origin:
        raise Forbidden("This token was made by another token and makes no keys. Sign in, or use a token that you made yourself.")
    return ctx.principal.credential


def _act(ctx: Context, verb: str, owner: User | None) -> tuple[str, audit.Subject, Target | None]:
    """How a change of a key is named and authorized; without a target it concerns the caller's own account."""
    if owner is None or owner.id == ctx.principal.user_id:
        return f"identity.s3_key.{verb}", oneself(ctx), None
    if ctx.principal.is_system:
        return f"identity.s3_key.{verb}", audit.Subject("identity.user", owner.id, owner.username), None
    if owner.kind != SERVICE:
        raise Forbidden("Nobody makes or changes keys of other people.")
    about = audit.Subject("identity.service_account", owner.id, owner.username, owner.default_project_id)
    return f"identity.service_account.{verb}_key", about, account_target(owner)


def s3_keys_of(ctx: Context, owner_id: str | None = None) -> Sequence[S3AccessKey]:
    """The caller's own keys, or those of a service account that the caller was shown, newest first."""
    query = select(S3AccessKey).where(S3AccessKey.user_id == (owner_id or ctx.principal.user_id))
    return ctx.db.scalars(query.order_by(S3AccessKey.created_at.desc(), S3AccessKey.id)).all()


def s3_key_names(user_id: str) -> Select[str]:
    """What a user calls their keys."""
    return select(S3AccessKey.name).where(S3AccessKey.user_id == user_id)


def s3_key_revoke(ctx: Context, key_id: str, *, owner: User | None = None) -> None:
    """End a key of the caller's own, or of a service account; it counts for nothing from the next request on. Raises NotFound or Forbidden."""
    action, subject, target = _act(ctx, "delete", owner)
    with acting(ctx, action, subject, target=target, details={"access_key_id": key_id[:64]}):
        whose = owner.id if owner is not None else ctx.principal.user_id
        row = ctx.db.scalars(select(S3AccessKey).where(S3AccessKey.id == storable(key_id), S3AccessKey.user_id == whose).with_for_update()).first()
        if row is None:
            raise NotFound("There is no such key of yours." if owner is None else f"{owner.username} has no such key.")
        ctx.db.delete(row)


# -- whoever comes with a key ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Who comes with a key, where their new buckets belong, and the secret that their signatures are made with."""

    key_id: str
    secret: str
    project_id: str | None
    principal: Principal
    last_used_at: datetime | None


# Asked with every request: plain columns, which cost a third of what models do.
_KEYS, _USERS, _ROLES, _MAKERS = (cast("Table", model.__table__).c for model in (S3AccessKey, User, Membership, ApiToken))
_BEHIND = (
    select(_KEYS.sealed_secret, _KEYS.project_id, _KEYS.last_used_at, _KEYS.is_active.label("key_is_active"),
           _USERS.id, _USERS.username, _USERS.platform_role, _USERS.is_active, _USERS.must_change_password, _USERS.default_project_id,
           (_USERS.password_hash != "").label("has_password"), iam.REVISION.label("revision"), _ROLES.role, _ROLES.project_id.label("in_project"),
           _KEYS.origin, _MAKERS.is_active.label("maker_is_active"), _MAKERS.expires_at.label("maker_ends"), _MAKERS.scopes)
    .select_from(S3AccessKey.__table__.join(User.__table__, _USERS.id == _KEYS.user_id).outerjoin(Membership.__table__, _ROLES.user_id == _USERS.id)
                 .outerjoin(ApiToken.__table__, _MAKERS.id == func.substr(_KEYS.origin, len(OF_TOKEN) + 1)))
    .where(_KEYS.id == bindparam("key")).order_by(_ROLES.project_id)
)  # fmt: skip


def s3_key_holder(session: Session, settings: Settings, key_id: str) -> KeyHolder | None:
    """Who is behind an access key; None if it is unknown, switched off, of a disabled user, or was sealed with another SECRET_KEY.

    Nor does a key count whose user has yet to choose a password, or lacks a second factor that one of their roles asks for. What a token made ends
    with it, rests while it is switched off, and may do no more than its scopes.
    """
    rows = session.execute(_BEHIND, {"key": key_id}).all() if is_storable(key_id) else ()
    row = rows[0] if rows else None
    if row is None or not (row.key_is_active and row.is_active) or row.must_change_password:
        return None
    if row.origin and not (row.maker_is_active and row.maker_ends > now()):
        return None
    secret = _unsealed(settings.secret(), row.sealed_secret)
    if secret is None:
        return None
    grants = [Grant(each.role, each.in_project) for each in rows if each.in_project is not None]
    if row.platform_role:
        grants.append(Grant(row.platform_role, None))
    inside = (scopes_limit(row.scopes),) if row.origin and row.scopes else ()
    principal = iam.with_access(session, Principal(row.id, row.username, f"s3:{key_id}", tuple(grants), limits=inside), row.revision)
    if principal.needs_factor and row.has_password and not devices_of(session, row.id):
        return None
    home = row.project_id or row.default_project_id or next((grant.project_id for grant in grants if grant.project_id), None)
    return KeyHolder(key_id, secret, home, principal, row.last_used_at)


@lru_cache(maxsize=1024)
def _unsealed(secret_key: str, sealed: str) -> str | None:
    """A key's secret: the same is asked for again and again."""
    return unseal_with(secret_key, sealed)


def s3_key_used(session: Session, holder: KeyHolder, source_ip: str) -> None:
    """Note that a key is in use, not more often than anybody needs to know."""
    moment = now()
    if holder.last_used_at is None or moment - holder.last_used_at > SEEN_EVERY:
        with transaction(session):
            session.execute(update(S3AccessKey).where(S3AccessKey.id == holder.key_id).values(last_used_at=moment, last_used_ip=source_ip))
