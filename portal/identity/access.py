"""What an account has open, and how that ends.

Lock order of accounts, so that no two transactions wait for each other: applications by id, administrators of the platform by id (where one may be
lost), the user, then what belongs to the user: sign-ins that were begun, sessions, memberships, places in groups, the roles that these reach, tokens, factors,
identities, invitations; the head of the audit log last.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session

from portal.identity.models import PERSON, ApiToken, Challenge, Invitation, S3AccessKey, User, UserSession
from portal.identity.oauth2.models import end_access
from portal.kernel.errors import Unauthorized
from portal.kernel.proof import OF_SESSION

OF_TOKEN = "token:"  # noqa: S105 - how its credential begins


class EndedSession(NamedTuple):
    """A session that has just been ended, and whose it was."""

    session_id: str
    user_id: str


def user_lock(session: Session, user_id: str | None) -> User:
    """The user as they are now, locked until the transaction ends, before anything that belongs to them. Raises Unauthorized for one who is gone."""
    user = session.get(User, user_id, with_for_update=True, populate_existing=True) if user_id is not None else None
    if user is None:
        raise Unauthorized("This account is gone.")
    return user


def admins_lock(session: Session) -> None:
    """Lock every administrator of the platform: of two who disable each other at once only one succeeds. Before any other user is locked."""
    admins = select(User.id).where(User.platform_role == "platform_admin", User.is_active.is_(True), User.kind == PERSON)
    session.scalars(admins.order_by(User.id).with_for_update()).all()


def sign_ins_end(session: Session, user_id: str, *, keep_session: str = "") -> int:
    """End every session of a locked user but one, and every sign-in that was begun, with the roles assumed there; how many sessions there were."""
    session.execute(delete(Challenge).where(Challenge.user_id == user_id))
    gone = end_sessions(session, UserSession.user_id == user_id, UserSession.session_id != keep_session)
    if not keep_session:
        # Also what was assumed in sessions that have run out.
        end_tokens(session, ApiToken.user_id == user_id, ApiToken.role_id.is_not(None))
    return len(gone)


def end_sessions(session: Session, *these: ColumnElement[bool]) -> Sequence[EndedSession]:
    """End these sessions with the roles assumed there, after locking whose they are, within the caller's transaction. The only way before their time."""
    whose = select(User.id).where(User.id.in_(select(UserSession.user_id).where(*these)))
    session.scalars(whose.order_by(User.id).with_for_update()).all()
    rows = session.execute(delete(UserSession).where(*these).returning(UserSession.session_id, UserSession.user_id)).all()
    end_tokens(session, ApiToken.origin.in_([OF_SESSION + row.session_id for row in rows]), ApiToken.role_id.is_not(None))
    return sorted(EndedSession(*row) for row in rows)


def end_tokens(session: Session, *these: ColumnElement[bool]) -> None:
    """End these tokens, what they made and the roles assumed by any of them, within the caller's transaction.

    By id, so that two who end some of the same do not wait for each other.
    """
    while ids := session.scalars(select(ApiToken.id).where(*these).order_by(ApiToken.id).with_for_update()).all():
        session.execute(delete(ApiToken).where(ApiToken.id.in_(ids)))
        session.execute(delete(S3AccessKey).where(S3AccessKey.origin.in_([OF_TOKEN + each for each in ids])))
        these = (ApiToken.origin.in_([OF_TOKEN + each for each in ids]),)


def end_assumed_by(session: Session, token_id: str) -> None:
    """End the roles that were assumed by a token, or by what it made, within the caller's transaction."""
    made = session.scalars(select(ApiToken.id).where(ApiToken.origin == OF_TOKEN + token_id)).all()
    end_tokens(session, ApiToken.role_id.is_not(None), ApiToken.origin.in_([OF_TOKEN + each for each in (token_id, *made)]))


def access_end(session: Session, user_id: str, *, keep_session: str = "") -> None:
    """End all that a locked user has open but one session: sessions, sign-ins, tokens, invitations and the access of applications."""
    sign_ins_end(session, user_id, keep_session=keep_session)
    end_tokens(session, ApiToken.user_id == user_id)
    session.execute(delete(S3AccessKey).where(S3AccessKey.user_id == user_id))
    session.execute(delete(Invitation).where(Invitation.user_id == user_id))
    end_access(session, user_id=user_id)
