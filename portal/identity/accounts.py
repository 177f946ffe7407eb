"""Signing in and out, sessions and passwords of a user's own account."""

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import ColumnElement, and_, case, func, or_, select, update
from sqlalchemy.orm import Session, joinedload

from portal.identity import iam, passwords
from portal.identity.access import access_end, end_sessions, user_lock
from portal.identity.models import PERSON, ApiToken, Membership, User, UserSession, digest
from portal.identity.oauth2.models import OAuthFamily
from portal.kernel import audit
from portal.kernel.authz import Target, refuse_escalation, statements_of
from portal.kernel.context import Assumed, Context, Grant, Principal
from portal.kernel.db import now, transaction
from portal.kernel.errors import Forbidden, InvalidRequest, NotFound, Unauthorized
from portal.kernel.ids import is_storable, storable
from portal.kernel.operations import acting, refusals_audited, refuse_restricted
from portal.kernel.projects import is_there
from portal.kernel.proof import OF_SESSION, require_proof

SEEN_EVERY = timedelta(seconds=30)
WRONG = "User name or password is wrong, or the account is locked for a while after too many tries."
ACCESS_PREFIX = "atonix.a."  # how the access token of a program's session is recognised; no API token has a dot
SIGN_IN = "identity.session.create"
CHANGE_PASSWORD = "identity.user.change_password"  # noqa: S105 - the name of an action
CredentialT = TypeVar("CredentialT", UserSession, ApiToken, OAuthFamily)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A user found behind a credential."""

    user: User
    principal: Principal
    session: UserSession | None = None


def principal_of(user: User, credential: str, *, mfa: bool = False, proved_at: datetime | None = None) -> Principal:
    """What the user may be, as the permission check wants it."""
    grants = [Grant(m.role, m.project_id) for m in user.memberships]
    if user.platform_role:
        grants.append(Grant(user.platform_role, None))
    return Principal(user.id, user.username, credential, tuple(grants), mfa=mfa, proved_at=proved_at)


def refuse_beyond(ctx: Context, user: User) -> None:
    """Raise Forbidden unless the caller may do, without condition, all that another may: who takes a key of an account acts as the account."""
    assumable = iam.role_grants(ctx.db, *iam.roles_trusting(ctx.db, user.id))
    for grant in (*principal_of(user, "").grants, *iam.grants_of(ctx.db, user.id), *assumable):
        refuse_escalation(ctx, statements_of(grant), grant.project_id)


def account_target(account: User) -> Target:
    """A service account as the target of an action: policies may name it."""
    return Target(account.default_project_id, label=f"service account {account.username}", id=account.id, name=account.username)


def check_password(ctx: Context, username: str, password: str) -> User:
    """The user with this name or e-mail address and password. Raises Unauthorized with the same words and in the same time for every reason."""
    ctx.db.rollback()
    # What cannot be a name is looked for all the same, and takes as long as one that nobody has.
    username = storable(username)
    user = ctx.db.scalars(
        select(User).where(User.kind == PERSON, or_(User.username == username[:254], func.lower(User.email) == username[:254].lower()))
    ).first()
    locked = user is not None and user.locked_until is not None and user.locked_until > now()
    stored = user.password_hash if user is not None and user.is_active else ""
    ctx.db.rollback()
    # Outside of any transaction: argon2 takes 50 ms, and the time must not tell who exists.
    right = passwords.matches(stored, password[: passwords.MAX_LENGTH * 4])
    if user is None or not right or locked:
        # Where nobody has this name it may be a password that was typed a line too early.
        note_failure(ctx, user, user.username if user else "unknown user", counts=not locked)
        raise Unauthorized(WRONG)
    return user


def note_failure(ctx: Context, user: User | None, shown: str, *, counts: bool, error: str = "wrong user name or password, or locked") -> None:
    """Write a failed sign-in down and, if it `counts`, let the account wait the longer the more there were."""
    with transaction(ctx.db):
        if user is not None and counts:
            row = user_lock(ctx.db, user.id)
            row.failed_sign_ins += 1
            wait = passwords.delay_after(row.failed_sign_ins)
            row.locked_until = now() + wait if wait else None
        subject = audit.Subject("identity.user", user.id if user else "", shown)
        # What was tried in somebody's name is found with all else of theirs; that nobody was signed in, the credential says.
        claimed = ctx.principal if user is None or ctx.principal.user_id else replace(ctx.principal, user_id=user.id, username=user.username)
        audit.record(replace(ctx, principal=claimed), SIGN_IN, subject, status="failure", error=error)


def home_project(user: User) -> str | None:
    """The project a user starts in."""
    mine = [m.project_id for m in user.memberships]
    if user.default_project_id and (user.platform_role or user.default_project_id in mine):
        return user.default_project_id
    return mine[0] if mine else None


def behind(session: Session, credential: type[CredentialT], is_this: ColumnElement[bool]) -> tuple[CredentialT, User, int | None] | None:
    """A credential, its active user with their memberships, and the revision of all policies, in one query: every request asks."""
    query = select(credential, User, iam.REVISION).join(User, User.id == credential.user_id).where(is_this, User.is_active.is_(True))
    row = session.execute(query.options(joinedload(User.memberships).lazyload(Membership.project))).unique().first()
    return (row[0], row[1], row[2]) if row is not None else None


def session_user(session: Session, secret: str, *, idle: timedelta) -> SignedIn | None:
    """Who is behind a session cookie, or a program's access token; None if it is unknown, expired, idle for too long or of a disabled user."""
    row, moment = behind(session, UserSession, UserSession.id_hash == digest(secret)), now()
    if row is None:
        return None
    found, user, revision = row
    if found.expires_at <= moment or found.last_seen_at + idle <= moment:
        return None
    # What a program holds is worth nothing in a cookie, and a cookie's value nothing in a header.
    if secret.startswith(ACCESS_PREFIX) != (found.access_expires_at is not None) or (found.access_expires_at or found.expires_at) <= moment:
        return None
    if moment - found.last_seen_at > SEEN_EVERY and not _touch(session, found.id_hash, moment):
        return None
    principal = principal_of(user, OF_SESSION + found.session_id, mfa=found.mfa_at is not None, proved_at=found.proved_at)
    return SignedIn(user, iam.with_access(session, principal, revision), found)


def assumed_by(session: Session, token: ApiToken, user: User, revision: int | None) -> Principal | None:
    """Whoever acts in a role; None unless the role still trusts them and the credential that assumed it holds."""
    role = session.scalars(select(iam.IamRole).where(iam.IamRole.id == token.role_id, iam.IamRole.deleted_at.is_(None))).first()
    if role is None or not iam.is_trusted(session, role, user.id) or not token_holds(session, token.origin):
        return None
    acting_in = Assumed(role.id, role.name, str(role.project_id), token.name)
    in_role = iam.with_role(session, Principal(user.id, user.username, f"role:{token.id}", mfa=token.mfa, assumed=acting_in), role, revision)
    # What is asked of the user is asked of whoever acts in their stead.
    return replace(in_role, needs_factor=iam.with_access(session, principal_of(user, ""), revision).needs_factor)


def token_holds(session: Session, credential: str) -> bool:
    """Whether a token may still be used, and for everything; sessions take what they led to along when they are ended."""
    kind, _, token_id = credential.partition(":")
    if kind != "token":
        return True
    alive = (ApiToken.id == token_id, ApiToken.is_active.is_(True), ApiToken.expires_at > now())
    found = session.scalars(select(ApiToken).where(*alive)).first()
    return found is not None and not found.scopes and token_holds(session, found.origin)


def _touch(session: Session, id_hash: str, moment: datetime) -> bool:
    """Note that the session is in use; False if it was ended a moment ago."""
    with transaction(session):
        seen = update(UserSession).where(UserSession.id_hash == id_hash).values(last_seen_at=moment).returning(UserSession.id_hash)
        return session.scalar(seen) is not None


def sign_out(ctx: Context, secret: str) -> None:
    """End a session; one that is gone already is no error."""
    with transaction(ctx.db):
        for gone in end_sessions(ctx.db, UserSession.id_hash == digest(secret)):
            audit.record(ctx, "identity.session.delete", oneself(ctx), details={"session": gone.session_id})


def session_replace(ctx: Context, secret: str) -> None:
    """End the session that a browser held before somebody signed in there anew; one that is gone already is no error."""
    with transaction(ctx.db):
        for gone in end_sessions(ctx.db, UserSession.id_hash == digest(secret)):
            user = ctx.db.get_one(User, gone.user_id)
            about = audit.Subject("identity.user", user.id, user.username)
            audit.record(ctx, "identity.session.delete", about, details={"session": gone.session_id, "replaced": True})


def sessions_of(ctx: Context) -> Sequence[UserSession]:
    """The caller's own sessions, newest first. Raises Forbidden for a credential that stands for less than the user."""
    refuse_assumed(ctx)
    refuse_restricted(ctx, "identity.session.read")
    query = select(UserSession).where(UserSession.user_id == ctx.principal.user_id, UserSession.expires_at > now())
    return ctx.db.scalars(query.order_by(UserSession.last_seen_at.desc())).all()


def refuse_assumed(ctx: Context) -> None:
    """Raise Forbidden for a session in a role: what concerns the account of its user is not its own."""
    if ctx.principal.assumed is not None:
        raise Forbidden(f"A session of role {ctx.principal.assumed.role_name} does not see what is its user's own.")


def session_revoke(ctx: Context, session_id: str) -> None:
    """End one of the caller's own sessions. Raises NotFound."""
    require_proof(ctx)
    with acting(ctx, "identity.session.delete", oneself(ctx), details={"session": session_id}):
        if not end_sessions(ctx.db, UserSession.user_id == ctx.principal.user_id, UserSession.session_id == session_id):
            raise NotFound("There is no such session of yours.")


def may_enter(ctx: Context, project_id: str) -> bool:
    """Whether the caller holds a role that reaches a project, and the project is there."""
    if any(grant.project_id == project_id for grant in ctx.principal.grants):
        return True
    everywhere = any(grant.project_id is None for grant in ctx.principal.grants)
    return everywhere and is_storable(project_id) and is_there(ctx.db, project_id)


def switch_project(ctx: Context, session_id_hash: str, project_id: str) -> None:
    """Make another project the session's current one. Raises NotFound unless the caller may see it."""
    if not may_enter(ctx, project_id):
        raise NotFound("There is no such project here.")
    with transaction(ctx.db):
        ctx.db.execute(update(UserSession).where(UserSession.id_hash == session_id_hash).values(project_id=project_id))


def password_change(ctx: Context, old: str, new: str, *, keep_session: str = "") -> None:
    """Change the caller's own password; every other session, every token of theirs and every application's access ends."""
    # First of all: who may not change the password does not learn whether they know it.
    with refusals_audited(ctx, CHANGE_PASSWORD, oneself(ctx)):
        refuse_restricted(ctx, CHANGE_PASSWORD)
    user = ctx.db.get_one(User, ctx.principal.user_id)
    passwords.check_strength(ctx.settings, new, field="new", username=user.username, email=user.email)
    if hmac.compare_digest(old.encode("utf-8", "surrogatepass"), new.encode()):
        raise InvalidRequest.fields({"new": ["must differ from the present one."]})
    try:
        check_password(ctx, user.username, old)
    except Unauthorized:
        raise InvalidRequest.fields({"old": ["is not your present password, or the account is locked for a while after too many tries."]}) from None
    fresh = passwords.hash_password(new)
    with acting(ctx, CHANGE_PASSWORD, oneself(ctx)):
        row = user_lock(ctx.db, ctx.principal.user_id)
        row.password_hash, row.must_change_password, row.failed_sign_ins = fresh, False, 0
        access_end(ctx.db, row.id, keep_session=keep_session)


def require_person(ctx: Context, what: str = "How you sign in is changed") -> None:
    """Raise Forbidden for what is no session: a token alone never does what would outlast it. Then as `require_proof`."""
    if not ctx.principal.credential.startswith(OF_SESSION):
        raise Forbidden(f"{what} in the console, by whoever has signed in there; a token alone does not.")
    require_proof(ctx)


def note_proof(ctx: Context, *, is_factor: bool) -> None:
    """Write down, within the caller's transaction, that whoever is behind the session has just proved who they are."""
    user = user_lock(ctx.db, ctx.principal.user_id)
    ctx.db.execute(update(UserSession).where(_this_session(ctx)).values({"proved_at": now(), **({"mfa_at": now()} if is_factor else {})}))
    if is_factor:
        # Not for a password alone: wrong codes of whoever knows it must go on counting.
        user.failed_sign_ins, user.locked_until = 0, None
    audit.record(ctx, "identity.session.confirm", oneself(ctx), details={"second_factor": is_factor})


def session_renew(ctx: Context, *, is_factor: bool) -> str:
    """Note a proof and give the session another secret, within the caller's transaction; who holds the old one is out.

    The new cookie's value; empty for a credential that is no session.
    """
    note_proof(ctx, is_factor=is_factor)
    if not ctx.principal.credential.startswith(OF_SESSION):
        return ""
    secret = secrets.token_urlsafe(32)
    # A program refreshes its tokens instead: the one that it holds is over.
    over = {"id_hash": digest(secret), "access_expires_at": case((UserSession.access_expires_at.is_not(None), now()))}
    ctx.db.execute(update(UserSession).where(_this_session(ctx)).values(over).execution_options(synchronize_session=False))
    return secret


def _this_session(ctx: Context) -> ColumnElement[bool]:
    return and_(UserSession.session_id == ctx.principal.credential.removeprefix(OF_SESSION), UserSession.user_id == ctx.principal.user_id)


def checked_name(name: str, *, longest: int) -> str:
    """The name of a token or device. Raises InvalidRequest."""
    name = name.strip()
    if not 0 < len(name) <= longest or not name.isprintable():
        raise InvalidRequest.fields({"name": [f"must have 1 to {longest} printable characters; this one has {len(name)}."]})
    return name


def oneself(ctx: Context) -> audit.Subject:
    """The caller as the subject of an audit entry."""
    return audit.Subject("identity.user", ctx.principal.user_id or "", ctx.principal.username)
