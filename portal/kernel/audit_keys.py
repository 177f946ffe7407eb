"""The key that signs the audit log, and those that signed it before; they are kept beside the database, never in it.

`DATA_DIR/audit_key`, or the setting AUDIT_SIGNING_KEY, has the private key first and then the public keys of earlier times: what none of them signed
is not believed, whatever the database says.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from portal.kernel.audit import canonical
from portal.kernel.files import write_first, write_whole
from portal.settings import Settings

KEY_FILE = "audit_key"
ANCHOR_FILE = "audit_checkpoint"


@dataclass(frozen=True, slots=True)
class Anchor:
    """The newest checkpoint that this host made, as it keeps it outside the database."""

    number: int
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Trust:
    """What a host knows besides the database: public keys by fingerprint, and its newest checkpoint. A host without keys checks no signatures."""

    keys: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    anchor: Anchor | None = None

    def is_signed(self, content: Mapping[str, object], key_id: str, signature: str) -> bool:
        """Whether one of the known keys signed this."""
        key = self.keys.get(key_id)
        try:
            if key is None:
                return False
            key.verify(base64.b64decode(signature, validate=True), message_of(content))
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Signer:
    """The private key in use."""

    private: Ed25519PrivateKey = field(repr=False)

    @property
    def key_id(self) -> str:
        """Fingerprint of its public key."""
        return fingerprint(self.private.public_key())

    @property
    def public(self) -> str:
        """Its public key in base64."""
        return _text(self.private.public_key())

    def sign(self, content: Mapping[str, object]) -> str:
        """Signature in base64."""
        return base64.b64encode(self.private.sign(message_of(content))).decode()


def message_of(content: Mapping[str, object]) -> bytes:
    """The bytes that are signed: canonical JSON."""
    return canonical(content).encode()


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of a public key, in hex."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def signer(settings: Settings) -> Signer:
    """The key in use, made at first use; two processes that start at once agree on one."""
    path = settings.data_dir / KEY_FILE
    if not settings.audit_signing_key.get_secret_value() and not path.exists():
        write_first(path, _text_of([_secret(Ed25519PrivateKey.generate())]))
    return Signer(_private(_lines(settings)[0]))


def trust_of(settings: Settings) -> Trust:
    """What this host knows besides the database."""
    lines = _lines(settings)
    keys = [_private(lines[0]).public_key(), *(Ed25519PublicKey.from_public_bytes(base64.b64decode(line)) for line in lines[1:])] if lines else []
    return Trust({fingerprint(key): key for key in keys}, _anchor(settings))


def trust_in(public_keys: Sequence[str]) -> Trust:
    """Trust in these public keys, in base64, and in nothing else. Raises ValueError."""
    keys = [Ed25519PublicKey.from_public_bytes(base64.b64decode(line, validate=True)) for line in public_keys]
    return Trust({fingerprint(key): key for key in keys})


def key_rotate(settings: Settings) -> str:
    """Sign with a fresh key from now on and keep believing the old one; gives the new fingerprint."""
    old, lines = signer(settings), _lines(settings)
    fresh = Ed25519PrivateKey.generate()
    write_whole(settings.data_dir / KEY_FILE, _text_of([_secret(fresh), old.public, *lines[1:]]))
    return fingerprint(fresh.public_key())


def keep_anchor(settings: Settings, anchor: Anchor) -> None:
    """Note the newest checkpoint outside the database."""
    write_whole(settings.data_dir / ANCHOR_FILE, _text_of([json.dumps({"number": anchor.number, "seq": anchor.seq, "hash": anchor.hash})]))


def _anchor(settings: Settings) -> Anchor | None:
    path = settings.data_dir / ANCHOR_FILE
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return Anchor(int(found["number"]), int(found["seq"]), str(found["hash"]))


def _lines(settings: Settings) -> list[str]:
    given, path = settings.audit_signing_key.get_secret_value(), settings.data_dir / KEY_FILE
    text = given.replace(",", "\n") if given else path.read_text() if path.exists() else ""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _private(line: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(line))


def _text(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes_raw()).decode()


def _secret(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.private_bytes_raw()).decode()


def _text_of(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
