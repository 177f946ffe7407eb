"""Passwords: argon2id hashes, one rule for what is accepted, one growing delay after wrong ones."""

import secrets
from datetime import timedelta
from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from portal.kernel.errors import InvalidRequest
from portal.kernel.ids import is_storable

MIN_LENGTH = 12
MAX_LENGTH = 256
FREE_TRIES = 5
FIRST_DELAY = timedelta(seconds=15)
LONGEST_DELAY = timedelta(hours=1)

_hasher = PasswordHasher()


@lru_cache(maxsize=1)
def _nobody() -> str:
    return _hasher.hash(secrets.token_urlsafe(16))


def hash_password(password: str) -> str:
    """argon2id with the library's current parameters."""
    return _hasher.hash(password)


def matches(password_hash: str, password: str) -> bool:
    """Whether the password is the right one; an empty hash costs as much time and never matches."""
    try:
        return _hasher.verify(password_hash or _nobody(), password) and bool(password_hash)
    except (VerificationError, InvalidHashError, UnicodeEncodeError):
        return False


def needs_rehash(password_hash: str) -> bool:
    """Whether the hash was made with weaker parameters than today's."""
    return _hasher.check_needs_rehash(password_hash)


def check_strength(password: str, *, field: str, username: str) -> None:
    """Raise InvalidRequest for a password that is too short, too long or says the user's name."""
    if not is_storable(password):
        raise InvalidRequest.fields({field: ["must be text without null characters."]})
    if len(password) < MIN_LENGTH:
        raise InvalidRequest.fields({field: [f"must have at least {MIN_LENGTH} characters; this one has {len(password)}."]})
    if len(password) > MAX_LENGTH:
        raise InvalidRequest.fields({field: [f"must have at most {MAX_LENGTH} characters."]})
    if username and username.lower() in password.lower():
        raise InvalidRequest.fields({field: ["must not contain the user name."]})


def delay_after(failures: int) -> timedelta:
    """How long an account stays locked after this many wrong passwords in a row."""
    if failures < FREE_TRIES:
        return timedelta(0)
    doublings: int = 2 ** min(failures - FREE_TRIES, 20)
    return min(FIRST_DELAY * doublings, LONGEST_DELAY)
