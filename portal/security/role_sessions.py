"""Acting in a role: a token for some hours that may do what the role may and nothing else. It is looked up, kept and ended like any API token."""

import secrets
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from portal.identity import iam
from portal.identity.accounts import checked_name, token_holds
from portal.identity.iam import BUILTIN, IamGroupMember, IamRole
from portal.identity.models import ApiToken, Membership, User, UserSession, role_digest
from portal.identity.tokens import TOKEN_PREFIX
from portal.kernel import audit, events
from portal.kernel.authz import access_of, authorize, compiled, decide, reach, target_of
from portal.kernel.context import Context, Grant
from portal.kernel.db import now, transaction
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthorized
from portal.kernel.ids import new_id, storable
from portal.kernel.operations import acting, refusals_audited
from portal.kernel.policy import Statement
from portal.kernel.projects import refuse_ending
from portal.kernel.proof import require_proof

ASSUME, END = "security.role.assume", "security.role.end_session"
SHORTEST_S, USUAL_S, HOUR_S = 900, 3600, 3600
NAME_MAX = 64
MAX_SESSIONS = 20


def role_assume(ctx: Context, role_id: str, session_name: str, *, duration_s: int | None = None) -> tuple[str, ApiToken, IamRole]:
    """Act in a role that trusts the caller; gives the token's text, which is shown once, its row, and the role.

    Raises NotFound for a role that is neither visible nor trusts the caller, InvalidRequest, Forbidden, or Conflict at the limit.
    """
    require_proof(ctx)
    role = role_visible(ctx, role_id)
    name = _checked(role, session_name, duration_s)
    lasts = timedelta(seconds=duration_s or min(USUAL_S, role.max_session_duration_hours * HOUR_S))
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    details = {"session_name": name, "duration_s": int(lasts.total_seconds())}
    with refusals_audited(ctx, ASSUME, _about(role)):
        _refuse_untrusted(ctx, role)
    ctx = with_trust(ctx, role, trusts=True)
    with acting(ctx, ASSUME, _about(role), target=target_of(role), details=details):
        _refuse_indirect(ctx)
        user, until = _credential_locked(ctx)
        role = _locked(ctx.db, role)
        # Once more, now that nobody changes the role: it may have become shorter.
        _refuse_untrusted(ctx, role)
        _checked(role, session_name, duration_s)
        if (ctx.db.scalar(select(func.count()).select_from(iam.running(ApiToken.user_id == user.id).subquery())) or 0) >= MAX_SESSIONS:
            raise Conflict(f"You act in {MAX_SESSIONS} sessions of roles, which is the most. End one first.", details={"limit": MAX_SESSIONS})
        token = ApiToken(
            id=new_id("rs"), user_id=user.id, name=name, token_hash=role_digest(secret), prefix=secret[:12], scopes=[],
            expires_at=min(now() + lasts, until),
            role_id=role.id, origin=ctx.principal.credential, mfa=ctx.principal.mfa,
        )  # fmt: skip
        ctx.db.add(token)
        ctx.db.flush()
        refuse_ending(ctx.db, role.project_id)
        _tell(ctx, ASSUME, role, token)
    return secret, token, role


def _credential_locked(ctx: Context) -> tuple[User, datetime]:
    """The caller, locked before the role, with where they belong, and until when a session in a role may last. Raises Unauthorized for what has ended."""
    # Not against rows that merely name them: whoever changes a role may write one.
    user = ctx.db.get_one(User, ctx.principal.user_id, with_for_update={"key_share": True}, populate_existing=True)
    kind, _, credential = ctx.principal.credential.partition(":")
    until = now() + timedelta(hours=iam.MAX_ROLE_HOURS)
    if kind == "session":
        row = (UserSession.session_id == credential, UserSession.user_id == user.id, UserSession.expires_at > now())
        holds = ctx.db.scalar(select(UserSession.session_id).where(*row)) is not None
    else:
        token = ctx.db.get(ApiToken, credential, with_for_update={"read": True}, populate_existing=True)
        holds = token is not None and token_holds(ctx.db, ctx.principal.credential)
        until = token.expires_at if token is not None else until
    if not holds or not user.is_active:
        raise Unauthorized("What you signed in with has ended meanwhile. Sign in again.")
    for belongs in (
        select(Membership.project_id).where(Membership.user_id == user.id),
        select(IamGroupMember.group_id).where(IamGroupMember.user_id == user.id),
    ):
        # Whoever takes them out waits, and finds the session.
        ctx.db.scalars(belongs.with_for_update(read=True)).all()
    return user, until


def _refuse_untrusted(ctx: Context, role: IamRole) -> None:
    if role.origin == BUILTIN:
        raise Conflict(f"{role.name} is built in: it is held as a member and not assumed.")
    if not iam.is_trusted(ctx.db, role, str(ctx.principal.user_id)):
        raise Forbidden(f"{role.name} does not trust you. Whoever manages roles can add you to its trust.")


def with_trust(ctx: Context, role: IamRole, *, trusts: bool) -> Context:
    """The context in which assuming a role is decided: its trust, and nothing else, says who may. What denies it to them, and boundaries, still count."""
    says = Statement("Trust", allows=trusts, actions=(ASSUME,), resources=(f"security.role/{role.id}",))
    grants = (*ctx.principal.grants, Grant("trust", role.project_id, f"the trust of role {role.name}", (says,)))
    whole = replace(ctx.principal, grants=grants, limits=tuple(access_of(ctx.principal).limits), access=None)
    return replace(ctx, principal=replace(ctx.principal, access=compiled(whole)))


def _checked(role: IamRole, session_name: str, duration_s: int | None) -> str:
    longest = role.max_session_duration_hours * HOUR_S
    if duration_s is not None and not SHORTEST_S <= duration_s <= longest:
        raise InvalidRequest.fields({"duration": [f"must be from {SHORTEST_S} to {longest} seconds, which is the longest that {role.name} allows."]})
    try:
        return checked_name(session_name, longest=NAME_MAX)
    except InvalidRequest as error:
        raise InvalidRequest.fields({"session_name": list(error.details["name"])}) from None  # type: ignore[call-overload] # a list of texts


def _refuse_indirect(ctx: Context) -> None:
    """Whatever stands for less than its user, or for somebody else, gets nothing that it was not given."""
    if ctx.principal.assumed is not None:
        raise Forbidden("A session of a role assumes no role. Use what you assumed the first with.")
    if ctx.principal.is_restricted or ctx.principal.credential.partition(":")[0] not in {"session", "token"}:
        raise Forbidden("A role is assumed with a session or with a token that is not restricted to scopes.")


def role_visible(ctx: Context, role_id: str) -> IamRole:
    """A role that the caller may read, acts in, or is trusted by. Raises NotFound."""
    text = storable(role_id)
    query = select(IamRole).where(or_(IamRole.id == text, IamRole.resource_id == text), IamRole.deleted_at.is_(None))
    role = ctx.db.scalars(query).first()
    if role is None:
        raise _missing(role_id)
    readable = ctx.db.scalars(select(IamRole.id).where(IamRole.id == role.id, reach(ctx, "security.role.read").rows(IamRole))).first()
    if readable is None and not _concerns(ctx, role):
        raise _missing(role_id)
    return role


def _concerns(ctx: Context, role: IamRole) -> bool:
    """Whether a role is the one that the caller acts in, or could."""
    if ctx.principal.assumed is not None:
        return ctx.principal.assumed.role_id == role.id
    return iam.is_trusted(ctx.db, role, str(ctx.principal.user_id))


def sessions_shown(ctx: Context, role: IamRole) -> list[tuple[ApiToken, User]]:
    """The sessions in a role that the caller may know of: all for whoever may end them, their own for everybody else, newest first."""
    if decide(ctx, END, target_of(role)).allowed:
        return iam.sessions_in(ctx.db, role)
    if ctx.principal.assumed is not None:
        return iam.sessions_in(ctx.db, role, ApiToken.id == ctx.principal.credential.removeprefix("role:"))
    return iam.sessions_in(ctx.db, role, ApiToken.user_id == ctx.principal.user_id)


def _missing(role_id: str) -> NotFound:
    return NotFound(f"There is no role {role_id[:80]} here.")


def _locked(session: Session, role: IamRole) -> IamRole:
    """The role, not to be changed or deleted before this transaction ends."""
    query = select(IamRole).where(IamRole.id == role.id, IamRole.deleted_at.is_(None)).with_for_update(read=True)
    found = session.scalars(query.execution_options(populate_existing=True)).first()
    if found is None:
        raise _missing(role.id)
    return found


def role_session_end(ctx: Context, role: IamRole, session_id: str) -> None:
    """End a session in a role: one's own, or with the permission anybody's. Raises NotFound or Forbidden."""
    with refusals_audited(ctx, END, _about(role)), transaction(ctx.db):
        query = select(ApiToken).where(ApiToken.id == storable(session_id), ApiToken.role_id == role.id).with_for_update()
        token = ctx.db.scalars(query).first()
        if token is None:
            raise NotFound(f"No session {session_id[:80]} runs in {role.name}.")
        is_itself = ctx.principal.credential == f"role:{token.id}"
        if not is_itself and (token.user_id != ctx.principal.user_id or ctx.principal.is_restricted):
            authorize(ctx, END, target_of(role))
        user = ctx.db.get_one(User, token.user_id)
        ctx.db.delete(token)
        _tell(ctx, END, role, token)
        audit.record(ctx, END, _about(role), details={"session": token.id, "session_name": token.name, "username": user.username})


def _tell(ctx: Context, event: str, role: IamRole, token: ApiToken) -> None:
    payload = {"session_id": token.id, "session_name": token.name}
    events.emit(ctx, event, resource_id=role.id, name=role.name, project_id=role.project_id, payload=payload)


def role_leave(ctx: Context) -> None:
    """End the session in a role that the caller acts in."""
    role_id, (_, _, session_id) = ctx.principal.assumed.role_id if ctx.principal.assumed else "", ctx.principal.credential.partition(":")
    role_session_end(ctx, ctx.db.get_one(IamRole, role_id), session_id)


def _about(role: IamRole) -> audit.Subject:
    return audit.Subject("security.role", role.id, role.name, role.project_id)
