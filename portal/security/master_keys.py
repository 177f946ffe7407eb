"""The master keys of an installation: they wrap the encryption keys of projects, and are kept beside the database, never in it.

The setting ENCRYPTION_MASTER_KEY has them, or the file that ENCRYPTION_MASTER_KEY_FILE names, or `DATA_DIR/master_key`. The first wraps, all unwrap:
so the master key is replaced without a moment in which something cannot be read.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from portal.kernel.errors import Unavailable
from portal.kernel.files import write_first
from portal.settings import Settings

KEY_FILE = "master_key"
KEY_BYTES, NONCE_BYTES = 32, 12


class MasterKeyMissing(Unavailable):
    """There is no master key, or not the one that wrapped what is to be read; an operator has to bring it back."""


@dataclass(frozen=True, slots=True)
class MasterKeys:
    """All of them by fingerprint, and the fingerprint of the one that wraps."""

    first: str
    keys: Mapping[str, bytes] = field(repr=False)

    def wrap(self, plain: bytes, about: bytes) -> bytes:
        """Encrypt and authenticate with the first; `about` has to be said again by whoever unwraps."""
        return encrypt(self.keys[self.first], plain, about)

    def unwrap(self, fingerprint: str, wrapped: bytes, about: bytes) -> bytes:
        """What was wrapped by the master key with this fingerprint. Raises MasterKeyMissing."""
        key = self.keys.get(fingerprint)
        if key is None:
            raise MasterKeyMissing(
                f"The master key {fingerprint} that wrapped this encryption key is not among those that the portal was started with. "
                "An operator has to add it to ENCRYPTION_MASTER_KEY or its file.",
                details={"fingerprint": fingerprint},
            )
        try:
            return decrypt(key, wrapped, about)
        except InvalidTag:
            raise MasterKeyMissing("An encryption key in the database is not what was written. Restore it from a backup of the database.") from None


def encrypt(key: bytes, plain: bytes, about: bytes) -> bytes:
    """AES-256-GCM with a random nonce, which comes first."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, about)


def decrypt(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """The plain text. Raises InvalidTag for what was altered, or said to be about something else."""
    if len(sealed) < NONCE_BYTES:
        raise InvalidTag
    return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)


def master_keys(settings: Settings, *, may_make: bool = False) -> MasterKeys:
    """Those of this installation; a first one is made only where nothing is wrapped yet (`may_make`). Raises MasterKeyMissing."""
    given, path = settings.encryption_master_key.get_secret_value(), _path(settings)
    if not given and not path.exists():
        if not may_make or settings.encryption_master_key_file:
            raise MasterKeyMissing(f"The file {path.name} with the master key is not there. An operator has to bring it back from where it was kept.")
        _make(path)
    found = _keys(given.replace(",", "\n") if given else path.read_text(), path)
    return MasterKeys(next(iter(found)), found)


def _path(settings: Settings) -> Path:
    named = settings.encryption_master_key_file
    return Path(named) if named else settings.data_dir / KEY_FILE


def _keys(text: str, path: Path) -> dict[str, bytes]:
    keys = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        with suppress(binascii.Error):
            key = base64.b64decode(line, validate=True)
            if len(key) == KEY_BYTES:
                keys[fingerprint(key)] = key
                continue
        raise MasterKeyMissing(f"A line of the file {path.name} with the master key is not 32 bytes in base64. An operator has to mend it.")
    if not keys:
        raise MasterKeyMissing(f"The file {path.name} with the master key is empty. An operator has to bring it back from where it was kept.")
    return keys


def fingerprint(key: bytes) -> str:
    """How a master key is called in the database and in messages."""
    return hashlib.sha256(b"portal: master key" + key).hexdigest()[:16]


def _make(path: Path) -> None:
    """A key of 32 random bytes; two processes that begin at once agree on one."""
    write_first(path, base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
