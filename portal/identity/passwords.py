"""Passwords: argon2id hashes, one rule for what is accepted, one growing delay after wrong ones."""

import re
import secrets
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from threading import Lock
from urllib.parse import urlsplit

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from zxcvbn import zxcvbn

from portal.kernel.errors import InvalidRequest
from portal.kernel.ids import is_storable
from portal.settings import Settings

MIN_LENGTH = 12
MAX_LENGTH = 256
# Of zxcvbn's scores 0 to 4: whoever knows how people choose passwords needs more than 10^10 tries. A season, a year and two signs take 10^9.
LEAST_SCORE = 4
BETTER = "Add another word or two; uncommon words are better."
# The estimate's cost grows with the square of the length, and with every sign that may stand for several letters.
JUDGED_LENGTH = 72
UNAMBIGUOUS = str.maketrans("({[<|", ")}]>~")
# What everybody would try here first, beside the user's own name and address and the portal's.
CONTEXT_WORDS = ("atonix", "portal", "cloud", "console")
BESIDE_WORDS = 8
FREE_TRIES = 5
FIRST_DELAY = timedelta(seconds=15)
LONGEST_DELAY = timedelta(hours=1)

_hasher = PasswordHasher()
# The library keeps the words of a call in a global.
_judging = Lock()


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


def check_strength(settings: Settings, password: str, *, field: str, username: str, email: str) -> None:
    """Raise InvalidRequest for a password that is too short, too long, says the user's name or is easy to guess."""
    if not is_storable(password):
        raise InvalidRequest.fields({field: ["must be text without null characters."]})
    if len(password) < MIN_LENGTH:
        raise InvalidRequest.fields({field: [f"must have at least {MIN_LENGTH} characters; this one has {len(password)}."]})
    if len(password) > MAX_LENGTH:
        raise InvalidRequest.fields({field: [f"must have at most {MAX_LENGTH} characters."]})
    if username and username.lower() in password.lower():
        raise InvalidRequest.fields({field: ["must not contain the user name."]})
    words = _words(username, email, urlsplit(settings.public_url).hostname or "")
    if len(re.sub("|".join(map(re.escape, words)), "", password, flags=re.IGNORECASE)) < BESIDE_WORDS:
        few = f"must have at least {BESIDE_WORDS} characters beside your name, your address and the words {', '.join(CONTEXT_WORDS)}."
        raise InvalidRequest.fields({field: [few]})
    if advice := _advice(password, words):
        raise InvalidRequest.fields({field: [advice]})


def _words(*texts: str) -> list[str]:
    """Words that are no secret of this user's, the longest first: the texts as they are, and their parts."""
    parts = {part for text in texts for part in (text, text.partition("@")[0], *re.split(r"[\W_]+", text))}
    return sorted({*CONTEXT_WORDS, *(part for part in parts if len(part) > 2)}, key=len, reverse=True)  # noqa: PLR2004 - not what is in any password


def _advice(password: str, words: Sequence[str]) -> str:
    """Why a password is too easy to guess, and what would be better; empty for a good one."""
    with _judging:
        found = zxcvbn(password[:JUDGED_LENGTH].translate(UNAMBIGUOUS), user_inputs=words)
    if found["score"] >= LEAST_SCORE:
        return ""
    told = [found["feedback"]["warning"], *(found["feedback"]["suggestions"] or [BETTER])]
    return " ".join(["is too easy to guess.", *(sentence for sentence in told if sentence)])


def delay_after(failures: int) -> timedelta:
    """How long an account stays locked after this many wrong passwords in a row."""
    if failures < FREE_TRIES:
        return timedelta(0)
    doublings: int = 2 ** min(failures - FREE_TRIES, 20)
    return min(FIRST_DELAY * doublings, LONGEST_DELAY)
