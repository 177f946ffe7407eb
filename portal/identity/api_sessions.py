"""Signing in by API: a session like a browser's, held by an access token that lasts minutes and a refresh token that is replaced at each use.

Being a session it stands in the profile and ends with all others: signed out, idle, too old, disabled, another password.
"""

import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select, update

from portal.identity import sign_in
from portal.identity.access import end_sessions, user_lock
from portal.identity.accounts import ACCESS_PREFIX, note_failure, principal_of
from portal.identity.models import SessionRefresh, User, UserSession, digest
from portal.identity.sign_in import Proof
from portal.kernel import audit
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import Unauthorized
from portal.kernel.proof import OF_SESSION

REFRESH_PREFIX = "atonix.r."
REFRESH = "identity.session.refresh"
OVER = "This refresh token is not known, was used, or its session has ended. Sign in again."


@dataclass(frozen=True, slots=True)
class Pair:
    """What a program holds of its session, each shown this once; the access token holds for some seconds."""

    access: str
    refresh: str
    expires_in: int


def session_begin(ctx: Context, user: User, proof: Proof) -> Pair:
    """Open a session for whoever was just checked. Raises Unauthorized where that does not hold any more."""
    pair, lasts = _pair(ctx)
    with transaction(ctx.db):
        found = sign_in.open_session(ctx, user.id, proof, pair.access)
        if found.session is not None:
            found.session.access_expires_at = now() + lasts
            ctx.db.add(SessionRefresh(token_hash=digest(pair.refresh), session_id=found.session.session_id))
    return pair


def session_refresh(ctx: Context, refresh: str) -> Pair:
    """Replace both tokens of a session. One that was used before ends it: somebody else has a copy. Raises Unauthorized."""
    query = (
        select(UserSession)
        .join(SessionRefresh, SessionRefresh.session_id == UserSession.session_id)
        .where(SessionRefresh.token_hash == digest(refresh))
    )
    user_id = ctx.db.scalar(query.with_only_columns(UserSession.user_id))
    if user_id is None:
        note_failure(ctx, None, "refresh token", counts=False, error="unknown or ended refresh token")
        raise Unauthorized(OVER)
    pair, lasts = _pair(ctx)
    with transaction(ctx.db):
        user = user_lock(ctx.db, user_id)
        found = ctx.db.scalars(query.execution_options(populate_existing=True)).first()
        holds = found is not None and user.is_active and found.expires_at > now() and found.last_seen_at + _idle(ctx) > now()
        if found is None or not holds:
            raise Unauthorized(OVER)
        fresh = update(SessionRefresh).where(SessionRefresh.token_hash == digest(refresh), SessionRefresh.used_at.is_(None)).values(used_at=now())
        is_first = ctx.db.scalar(fresh.returning(SessionRefresh.token_hash)) is not None
        ctx.principal, about = principal_of(user, OF_SESSION + found.session_id), audit.Subject("identity.user", user.id, user.username)
        if is_first:
            found.id_hash, found.access_expires_at, found.last_seen_at = digest(pair.access), now() + lasts, now()
            ctx.db.add(SessionRefresh(token_hash=digest(pair.refresh), session_id=found.session_id))
            audit.record(ctx, REFRESH, about, details={"session": found.session_id})
        else:
            session_id = found.session_id
            end_sessions(ctx.db, UserSession.session_id == session_id)
            audit.record(ctx, REFRESH, about, status="failure", error="a refresh token was used twice", details={"session": session_id})
    if not is_first:
        raise Unauthorized(OVER)
    return pair


def _idle(ctx: Context) -> timedelta:
    """How long a session may lie unused."""
    return timedelta(minutes=ctx.settings.session_idle_minutes)


def _pair(ctx: Context) -> tuple[Pair, timedelta]:
    lasts = timedelta(minutes=ctx.settings.oauth2_access_token_minutes)
    access, refresh = ACCESS_PREFIX + secrets.token_urlsafe(32), REFRESH_PREFIX + secrets.token_urlsafe(32)
    return Pair(access, refresh, int(lasts.total_seconds())), lasts
