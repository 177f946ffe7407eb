"""Secrets that the portal must read again, such as those of authenticator apps: encrypted with a key that is not in the database."""

import base64
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from portal.settings import Settings


def seal(settings: Settings, text: str) -> str:
    """Encrypt and authenticate."""
    return _fernet(settings.secret()).encrypt(text.encode()).decode()


def unseal(settings: Settings, sealed: str) -> str | None:
    """The text again; None if it was sealed with another SECRET_KEY or altered."""
    return unseal_with(settings.secret(), sealed)


def unseal_with(secret_key: str, sealed: str) -> str | None:
    """The same with a SECRET_KEY that is at hand."""
    try:
        return _fernet(secret_key).decrypt(sealed.encode()).decode()
    except InvalidToken:
        return None


@lru_cache(maxsize=8)
def _fernet(secret: str) -> Fernet:
    key = HKDF(SHA256(), length=32, salt=None, info=b"portal: secrets at rest").derive(secret.encode())
    return Fernet(base64.urlsafe_b64encode(key))
