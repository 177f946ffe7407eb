"""What an account has open, and how that ends.

Lock order of accounts, so that no two transactions wait for each other: applications by id, administrators of the platform by id (where one may be
lost), the user, then what belongs to the user: sign-ins that were begun, sessions, tokens, factors, identities, invitations; the head of the audit log last.
"""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from portal.identity.models import PERSON, ApiToken, Challenge, Invitation, User, UserSession
from portal.identity.oauth2.models import end_access


def user_lock(session: Session, user_id: str | None) -> User:
    """The user as they are now, locked until the transaction ends, before anything that belongs to them."""
    return session.get_one(User, user_id, with_for_update=True, populate_existing=True)


def admins_lock(session: Session) -> None:
    """Lock every administrator of the platform: of two who disable each other at once only one succeeds. Before any other user is locked."""
    admins = select(User.id).where(User.platform_role == "platform_admin", User.is_active.is_(True), User.kind == PERSON)
    session.scalars(admins.order_by(User.id).with_for_update()).all()


def sign_ins_end(session: Session, user_id: str, *, keep_session: str = "") -> int:
    """End every session of a locked user but one, and every sign-in that was begun, with the roles assumed there; how many sessions there were."""
    session.execute(delete(Challenge).where(Challenge.user_id == user_id))
    theirs = delete(UserSession).where(UserSession.user_id == user_id, UserSession.session_id != keep_session)
    gone = session.scalars(theirs.returning(UserSession.session_id)).all()
    end_assumed(session, user_id, gone if keep_session else None)
    return len(gone)


def end_assumed(session: Session, user_id: str, session_ids: Sequence[str] | None = None) -> None:
    """End the roles that a user acts in (only those assumed in these sessions, if given), within the caller's transaction."""
    ending = delete(ApiToken).where(ApiToken.user_id == user_id, ApiToken.role_id.is_not(None))
    session.execute(ending if session_ids is None else ending.where(ApiToken.origin.in_([f"session:{each}" for each in session_ids])))


def access_end(session: Session, user_id: str, *, keep_session: str = "") -> None:
    """End all that a locked user has open but one session: sessions, sign-ins, tokens, invitations and the access of applications."""
    sign_ins_end(session, user_id, keep_session=keep_session)
    for model in (ApiToken, Invitation):
        session.execute(delete(model).where(model.user_id == user_id))
    end_access(session, user_id=user_id)
