"""What an administrator does to accounts from the command line, where no session is needed because the machine is theirs."""

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from portal.identity import factors, passwords
from portal.identity.access import access_end, user_lock
from portal.identity.accounts import home_project
from portal.identity.iam import IamAttachment, bump
from portal.identity.models import PERSON, User
from portal.identity.s3_keys import s3_key_create
from portal.kernel import audit
from portal.kernel.context import SYSTEM, Context
from portal.kernel.errors import NotFound
from portal.kernel.operations import acting
from portal.kernel.resource import Registry
from portal.settings import Settings


def set_password(session: Session, settings: Settings, username: str, password: str) -> None:
    """Set a user's password; their sessions, tokens and the access of applications end. Raises NotFound or InvalidRequest."""
    user = _user(session, username)
    passwords.check_strength(settings, password, field="password", username=user.username, email=user.email)
    fresh = passwords.hash_password(password)
    with acting(_context(session, settings), "identity.user.set_password", _about(user)):
        row = user_lock(session, user.id)
        row.password_hash, row.failed_sign_ins, row.locked_until = fresh, 0, None
        access_end(session, row.id)


def unlock(session: Session, settings: Settings, username: str) -> None:
    """End the lock after wrong passwords. Raises NotFound."""
    user = _user(session, username)
    with acting(_context(session, settings), "identity.user.unlock", _about(user)):
        row = user_lock(session, user.id)
        row.failed_sign_ins, row.locked_until = 0, None


def reset_factors(session: Session, settings: Settings, username: str) -> None:
    """Forget the apps, passkeys and recovery codes of a user who lost them; their sessions end. Raises NotFound."""
    factors.factors_reset(_context(session, settings), _user(session, username))


def detach_policies(session: Session, settings: Settings, username: str) -> None:
    """Take every policy from a user that was attached to them, whatever it denies: for whoever cannot be helped otherwise. Raises NotFound."""
    user, ctx = _user(session, username), _context(session, settings)
    with acting(ctx, "identity.user.detach_policies", _about(user)):
        mine = (IamAttachment.principal_type == "user", IamAttachment.principal_id == user.id)
        session.execute(delete(IamAttachment).where(*mine))
        bump(session)


def s3_key(session: Session, settings: Settings, username: str) -> tuple[str, str]:
    """Make an access key for the S3 interface: (key, secret). Raises NotFound or QuotaExceeded."""
    user = _user(session, username)
    secret, key = s3_key_create(_context(session, settings), user, "Made on the command line", project_id=home_project(user))
    return key.id, secret


def _user(session: Session, username: str) -> User:
    is_this = (User.username == username) | (func.lower(User.email) == username.lower())
    user = session.scalars(select(User).where(is_this, User.kind == PERSON)).first()
    if user is None:
        raise NotFound(f"There is no user {username!r}.")
    return user


def _context(session: Session, settings: Settings) -> Context:
    return Context(session, settings, Registry([], {}), SYSTEM, source="cli")


def _about(user: User) -> audit.Subject:
    return audit.Subject("identity.user", user.id, user.username)
