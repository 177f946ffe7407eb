"""Tokens for scripts: shown once, kept as hashes, restricted to scopes, replaced without a gap."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Select, and_, func, or_, select, update
from sqlalchemy.orm import Session

from portal.identity import iam
from portal.identity.access import end_assumed_by, end_tokens, user_lock
from portal.identity.accounts import (
    SEEN_EVERY,
    SignedIn,
    account_target,
    assumed_by,
    behind,
    checked_name,
    oneself,
    principal_of,
    refuse_assumed,
    refuse_beyond,
)
from portal.identity.models import SERVICE, ApiToken, User, digest, role_digest
from portal.kernel import audit, limits, quota
from portal.kernel.authz import Target
from portal.kernel.context import Context, Limit
from portal.kernel.db import now, transaction
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound, QuotaExceeded, Unauthorized
from portal.kernel.idempotency import Fingerprint, refuse_repeat, remember_secret
from portal.kernel.ids import storable
from portal.kernel.operations import acting, refuse_application
from portal.kernel.policy import LEVELS, Statement
from portal.kernel.projects import refuse_ending
from portal.kernel.proof import require_proof

TOKEN_PREFIX = "atonix_"  # noqa: S105 - how a token is recognised, not one
MAX_SCOPES = 50
TOKEN_NAME_MAX = 255
OVERLAP_H = 24


def _count(session: Session, user_id: str) -> int:
    return session.scalar(select(func.count()).select_from(_keys(user_id).where(ApiToken.expires_at > now()).subquery())) or 0


def _keys(user_id: str | None) -> Select[ApiToken]:
    """The tokens that a user keeps: sessions in roles are none."""
    return select(ApiToken).where(ApiToken.user_id == user_id, ApiToken.role_id.is_(None))


API_KEYS = quota.declare(quota.Dimension("api_keys", "API keys", "", 20, counted=_count))


def token_create(
    ctx: Context, user: User, name: str, *, scopes: Sequence[str] = (), days: int | None = None, replace_oldest: bool = False, checked_hash: str = ""
) -> tuple[str, ApiToken]:  # fmt: skip
    """Make a token of the caller's own, or of a service account; gives its text, which is shown once, and the row.

    Without scopes it may do everything that its user may. What a token makes ends with it. Raises InvalidRequest, Forbidden for a token that makes a
    stronger one or was made by another, and QuotaExceeded at the limit, unless the oldest of its name may go.
    """
    require_proof(ctx)
    _refuse_replaced(ctx)
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    name = checked_name(name, longest=TOKEN_NAME_MAX)
    check_scopes(ctx, scopes)
    act = _act(ctx, "create", user)
    with acting(ctx, act.action, act.subject, target=act.target, details={"name": name, "scopes": list(scopes)}):
        asked = {"owner": user.id, "name": name, "scopes": list(scopes), "days": days}
        refuse_repeat(ctx, Fingerprint(act.action, None, "", asked))
        _refuse_stronger(ctx, scopes)
        # The user, not the tokens: two at once would each count those that were there before.
        owner = _lock_owner(ctx, user)
        if owner.kind == SERVICE:
            refuse_ending(ctx.db, owner.default_project_id)
        if checked_hash and owner.password_hash != checked_hash:
            raise Unauthorized("The password was changed meanwhile. Sign in again.")
        live = ctx.db.scalars(_keys(user.id).order_by(ApiToken.created_at)).all()
        for token in live:
            if token.expires_at <= now():
                ctx.db.delete(token)
        valid = [token for token in live if token.expires_at > now()]
        most = limits.user_limit(ctx.db, user.id, API_KEYS)
        if most is not None and len(valid) >= most and (same := [token for token in valid if replace_oldest and token.name == name]):
            end_tokens(ctx.db, ApiToken.id == same[0].id)
        elif most is not None and len(valid) >= most:
            raise QuotaExceeded(API_KEYS.name, limit=most, used=len(valid), requested=1, of_user=True)
        days = days or ctx.settings.api_token_days
        token = ApiToken(
            user_id=user.id, name=name, token_hash=digest(secret), prefix=secret[:12], expires_at=_end(ctx, days), scopes=list(scopes), days=days,
            origin=ctx.principal.credential if _maker(ctx) else "",
        )  # fmt: skip
        ctx.db.add(token)
        ctx.db.flush()
        remember_secret(ctx, token.id)
    return secret, token


def _maker(ctx: Context) -> ApiToken | None:
    """The token that is about to make another, or to replace a secret; None for a person. Whoever finds one must not keep what it led to."""
    kind, _, token_id = ctx.principal.credential.partition(":")
    if kind != "token":
        return None
    if (maker := ctx.db.get(ApiToken, token_id, populate_existing=True)) is None:
        raise Unauthorized("This token has ended.")
    return maker


def _end(ctx: Context, days: int) -> datetime:
    """When a new token ends: not after the token that makes it. Raises Forbidden for one that was made by a token itself."""
    end, maker = now() + timedelta(days=days), _maker(ctx)
    if maker is None:
        return end
    if maker.origin:
        raise Forbidden("This token was made by another token and makes none. Sign in, or use a token that you made yourself.")
    return min(end, maker.expires_at)


@dataclass(frozen=True, slots=True)
class _Act:
    """How a change of a token is authorized and audited; without a target it concerns the caller's own account."""

    action: str
    subject: audit.Subject
    target: Target | None = None


def _act(ctx: Context, verb: str, owner: User | None) -> _Act:
    if owner is None or owner.id == ctx.principal.user_id:
        return _Act(f"identity.api_token.{verb}", oneself(ctx))
    if owner.kind != SERVICE:
        raise Forbidden("Nobody makes or changes tokens of other people.")
    about = audit.Subject("identity.service_account", owner.id, owner.username, owner.default_project_id)
    return _Act(f"identity.service_account.{verb}_key", about, account_target(owner))


def _lock_owner(ctx: Context, owner: User) -> User:
    """Lock the owner; who takes a key of a service account must be able to do all that it may, as it is now. Raises Forbidden or Conflict."""
    if ctx.principal.assumed is not None:
        raise Forbidden("A session of a role makes no keys: they would outlive it.")
    refuse_application(ctx)
    row = user_lock(ctx.db, owner.id)
    if not row.is_active:
        raise Conflict(f"{row.username} is disabled. Enable it first.")
    if row.id != ctx.principal.user_id:
        refuse_beyond(ctx, row)
    return row


def check_scopes(ctx: Context, scopes: Sequence[str]) -> None:
    """Raise InvalidRequest if one of them is no scope, or there are too many."""
    services = {action.partition(".")[0] for action in ctx.registry.permissions} | {"*"}
    wrong = [scope for scope in scopes if scope != "admin" and not _is_scope(scope, services)]
    if wrong or len(scopes) > MAX_SCOPES:
        known = f"{', '.join(sorted(services))}, a colon and {', '.join(LEVELS)} or *"
        problem = f"{wrong[0][:80]!r} is no scope; one is {known}, or admin." if wrong else f"has more than {MAX_SCOPES} entries."
        raise InvalidRequest.fields({"scopes": [problem]})


def scopes_known(ctx: Context) -> list[str]:
    """Every scope there is, for documents."""
    services = sorted({action.partition(".")[0] for action in ctx.registry.permissions} | {"*"})
    return [*(f"{service}:{level}" for service in services for level in (*LEVELS, "*")), "admin"]


def _is_scope(scope: str, services: set[str]) -> bool:
    service, colon, level = scope.partition(":")
    return bool(colon) and service in services and level in {*LEVELS, "*"}


def _refuse_stronger(ctx: Context, scopes: Sequence[str]) -> None:
    """A token whose scopes are limited makes none that may do more."""
    for limit in ctx.principal.limits:
        if more := _beyond(ctx, scopes, limit.statements[0]):
            raise Forbidden(f"This token has no say in tokens that may do more than it: {', '.join(more[:5])}.", details={"actions": more[:100]})


def _beyond(ctx: Context, scopes: Sequence[str], inside: Statement) -> list[str]:
    """The actions that scopes cover and a statement does not."""
    wanted = _as_statement(scopes)
    return [action for action, level in ctx.registry.permissions.items() if wanted.covers(action, level) and not inside.covers(action, level)]


def _as_statement(scopes: Sequence[str]) -> Statement:
    return scopes_limit(scopes or ("admin",)).statements[0]


def _refuse_replaced(ctx: Context) -> None:
    """A secret that was replaced holds on for whoever has not got the new one yet; it may be in wrong hands, and changes nothing. Raises Forbidden."""
    if ctx.principal.is_replaced:
        raise Forbidden("This secret has been replaced: it makes, changes and ends no tokens. Use the new one.")


def _refuse_others(ctx: Context, token: ApiToken) -> None:
    """A token has a hand in itself and in what it made: another may hold for longer than it. Raises Forbidden."""
    maker = _maker(ctx)
    if maker is not None and token.id != maker.id and token.origin != ctx.principal.credential:
        raise Forbidden("A token strengthens and replaces itself and what it made, no other token. Sign in to do that.")


def tokens_of(ctx: Context, owner: User | None = None) -> Sequence[ApiToken]:
    """The caller's own tokens, or those of a service account that the caller was shown, newest first. A restricted token sees itself."""
    mine = _keys(owner.id if owner is not None else ctx.principal.user_id)
    if owner is None:
        refuse_assumed(ctx)
        refuse_application(ctx)
        if ctx.principal.limits:
            mine = mine.where(ApiToken.id == ctx.principal.credential.removeprefix("token:"))
    return ctx.db.scalars(mine.order_by(ApiToken.created_at.desc())).all()


def token_revoke(ctx: Context, token_id: str, *, owner: User | None = None) -> None:
    """End one of the caller's own tokens, or of a service account; a restricted token ends none that may do more than it.

    Raises NotFound or Forbidden.
    """
    _refuse_replaced(ctx)
    act = _act(ctx, "delete", owner)
    with acting(ctx, act.action, act.subject, target=act.target, details={"key_id": token_id[:64]}):
        token = _own(ctx, token_id, owner)
        _refuse_stronger(ctx, token.scopes)
        end_tokens(ctx.db, ApiToken.id == token.id)


def token_user(session: Session, secret: str, *, source_ip: str) -> SignedIn | None:
    """Who is behind an API token; None if it is unknown, switched off, expired or of a disabled user. After a rotation the old secret holds a while."""
    hashed, moment = digest(secret), now()
    is_this = or_(ApiToken.token_hash.in_((hashed, role_digest(secret))), and_(ApiToken.previous_hash == hashed, ApiToken.previous_until > moment))
    row = behind(session, ApiToken, is_this)
    if row is None or row[0].expires_at <= moment or not row[0].is_active:
        return None
    token, user, revision = row
    in_role = None
    if token.role_id is not None and (in_role := assumed_by(session, token, user, revision)) is None:
        return None
    if token.last_used_at is None or moment - token.last_used_at > SEEN_EVERY:
        with transaction(session):
            session.execute(update(ApiToken).where(ApiToken.id == token.id).values(last_used_at=moment, last_used_ip=source_ip))
    if in_role is not None:
        return SignedIn(user, in_role)
    makers = _scopes_of_maker(session, token)
    if makers is None:
        return None
    limits = tuple(scopes_limit(scopes) for scopes in (token.scopes, makers) if scopes)
    is_replaced = token.token_hash != hashed
    return SignedIn(
        user, iam.with_access(session, replace(principal_of(user, f"token:{token.id}"), limits=limits, is_replaced=is_replaced), revision)
    )


@dataclass(frozen=True, slots=True)
class Refused:
    """A token that is known and does not hold: whose it is, and why."""

    token_id: str
    username: str
    why: str


def token_behind(session: Session, secret: str) -> Refused | None:
    """What is known of a secret that was refused, for the audit log; None for one that is no token, or none any more."""
    hashed = digest(secret)
    query = select(ApiToken, User).join(User, User.id == ApiToken.user_id)
    row = session.execute(query.where(or_(ApiToken.token_hash == hashed, ApiToken.previous_hash == hashed))).first()
    if row is None:
        return None
    token, user = row
    reasons = (
        (token.previous_hash == hashed, "it was replaced by a new one"), (not user.is_active, "its user is disabled"),
        (token.expires_at <= now(), "it has expired"), (not token.is_active, "it is switched off"),
    )  # fmt: skip
    why = next((text for holds, text in reasons if holds), "what it was made with has ended")
    return Refused(token.id, user.username, why)


def _scopes_of_maker(session: Session, token: ApiToken) -> Sequence[str] | None:
    """What the token that made this one may be used for; None if it ended or is switched off."""
    if not token.origin:
        return ()
    maker = session.get(ApiToken, token.origin.removeprefix("token:"), populate_existing=True)
    return maker.scopes if maker is not None and maker.is_active and maker.expires_at > now() else None


def token_update(
    ctx: Context, token_id: str, *, name: str | None = None, scopes: Sequence[str] | None = None, is_active: bool | None = None
) -> ApiToken:  # fmt: skip
    """Rename one of the caller's own tokens, restrict or widen it, switch it off or on. Raises NotFound, InvalidRequest or Forbidden."""
    require_proof(ctx)
    _refuse_replaced(ctx)
    changes = {
        "name": None if name is None else checked_name(name, longest=TOKEN_NAME_MAX),
        "scopes": None if scopes is None else list(scopes),
        "is_active": is_active,
    }
    check_scopes(ctx, scopes or ())
    with acting(ctx, "identity.api_token.update", oneself(ctx), details={"key_id": token_id[:64], "after": changes}):
        token = _own(ctx, token_id, None)
        if (is_active and not token.is_active) or (scopes is not None and _beyond(ctx, scopes, _as_statement(token.scopes))):
            _refuse_others(ctx, token)
        # As it is as well as it is to be: who may do less neither takes nor gives what they have not.
        _refuse_stronger(ctx, token.scopes)
        _refuse_stronger(ctx, token.scopes if scopes is None else scopes)
        for attribute, value in changes.items():
            if value is not None:
                setattr(token, attribute, value)
        if not token.is_active or token.scopes:
            end_assumed_by(ctx.db, token.id)
    return token


def token_rotate(ctx: Context, token_id: str, *, overlap_hours: int = OVERLAP_H, owner: User | None = None) -> tuple[str, ApiToken]:
    """Give one of the caller's own tokens, or of a service account, a new secret, shown once; the old one holds for some hours.

    Asked for by a person, it also begins its lifetime anew; a token gives no more time than there was.

    Raises NotFound or Forbidden.
    """
    require_proof(ctx)
    _refuse_replaced(ctx)
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    act = _act(ctx, "rotate", owner)
    with acting(ctx, act.action, act.subject, target=act.target, details={"key_id": token_id[:64], "overlap_hours": overlap_hours}):
        refuse_repeat(ctx, Fingerprint(act.action, None, token_id, {"overlap_hours": overlap_hours}))
        if owner is not None:
            _lock_owner(ctx, owner)
        token = _own(ctx, token_id, owner)
        _refuse_others(ctx, token)
        _refuse_stronger(ctx, token.scopes)
        if overlap_hours and token.previous_until is not None and token.previous_until > now():
            raise Conflict(
                f"The secret before this one holds until {token.previous_until:%Y-%m-%d %H:%M} UTC and may be in use. Wait until then, or rotate with "
                "overlap_hours 0, which ends both.", details={"previous_until": token.previous_until.isoformat()},
            )  # fmt: skip
        token.previous_hash, token.previous_until = token.token_hash, min(now() + timedelta(hours=overlap_hours), token.expires_at)
        token.token_hash, token.prefix = digest(secret), secret[:12]
        if _maker(ctx) is None:
            token.expires_at = now() + timedelta(days=token.days)
        if not overlap_hours:
            # The old secret may be in wrong hands, and so is what was assumed with it.
            end_assumed_by(ctx.db, token.id)
        remember_secret(ctx, token.id)
    return secret, token


def _own(ctx: Context, token_id: str, owner: User | None) -> ApiToken:
    owner_id = owner.id if owner is not None else ctx.principal.user_id
    own = _keys(owner_id).where(ApiToken.id == storable(token_id))
    token = ctx.db.scalars(own.with_for_update().execution_options(populate_existing=True)).first()
    if token is None:
        raise NotFound("There is no such token of yours." if owner is None else f"{owner.username} has no such key.")
    return token


def scopes_limit(scopes: Sequence[str]) -> Limit:
    """What a token's scopes allow: `compute:read`, `*:write`, or `admin` for everything that its user may do."""
    actions = tuple("*" if scope == "admin" else scope for scope in scopes)
    return Limit("The token's scope", (Statement("Scopes", allows=True, actions=actions),))
