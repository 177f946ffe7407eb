"""Key pairs: public SSH keys that guests let in. A private key made here is shown once and kept nowhere."""

import base64
import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from sqlalchemy.orm import Mapped

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.db import Base
from portal.kernel.declare import Created, Effect, operation, update_operation
from portal.kernel.errors import InvalidRequest
from portal.kernel.resource import Column, ProjectOwned, ResourceType

MIN_RSA_BITS = 2048
KEY_TYPES = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")


class KeyPair(ProjectOwned, Base):
    """A public SSH key under a name."""

    __tablename__ = "key_pairs"

    public_key: Mapped[str] = f.field(
        f.LongText(16384), label="Public key", help="One line in OpenSSH form. Leave empty to have a pair made.", default=""
    )
    fingerprint: Mapped[str] = f.field(f.Line(64), label="Fingerprint", default="")
    key_type: Mapped[str] = f.field(f.Line(32), label="Type", default="")


@operation(KeyPair, "create", label="Create", needs="write", effect=Effect.CREATE)
def key_pair_create(ctx: Context, *, name: str, public_key: str = "", description: str = "", tags: dict[str, str] | None = None) -> Created:
    """Import a public key, or make a pair and show its private key once."""
    del ctx
    once = {}
    if not public_key.strip():
        public_key, once["private_key"] = generate(name)
    line, key_type, fingerprint = parse_public_key(public_key)
    row = KeyPair(name=name, description=description, tags=tags or {}, public_key=line, key_type=key_type, fingerprint=fingerprint)
    return Created([row], once)


@operation(KeyPair, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True)
def key_pair_delete(ctx: Context, key_pair: KeyPair) -> None:
    """Delete a key pair; instances that were made with it keep letting it in."""
    del ctx, key_pair


def generate(comment: str) -> tuple[str, str]:
    """A fresh Ed25519 pair: (public line, private key in OpenSSH form)."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()).decode()
    # The comment ends up in files where a line is a key.
    return f"{public} {' '.join(comment.split())}", private


def parse_public_key(text: str) -> tuple[str, str, str]:
    """(normalised line, type, SHA-256 fingerprint as ssh-keygen prints it). Raises InvalidRequest."""
    parts = text.strip().split(None, 2)
    if len(text.strip().splitlines()) != 1 or len(parts) < 2 or parts[0] not in KEY_TYPES:  # noqa: PLR2004 - type and key
        raise InvalidRequest.fields({"public_key": [f"must be one line that begins with {', '.join(KEY_TYPES)}."]})
    try:
        key = serialization.load_ssh_public_key(f"{parts[0]} {parts[1]}".encode())
        blob = base64.b64decode(parts[1], validate=True)
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidRequest.fields({"public_key": ["is not a sound OpenSSH public key; paste the whole line of the .pub file."]}) from None
    if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        problem = f"is an RSA key of {key.key_size} bits, which can be broken; at least {MIN_RSA_BITS} are accepted. Better make an Ed25519 key."
        raise InvalidRequest.fields({"public_key": [problem]})
    fingerprint = "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return " ".join(parts), parts[0], fingerprint


KEY_PAIR = ResourceType(
    KeyPair, service="compute", name="key_pair", collection="key-pairs", prefix="kp", label="Key pair", plural="Key pairs", icon="key",
    summary="Public SSH keys that guests let in.",
    operations=[key_pair_create, key_pair_delete, update_operation(KeyPair)],
    columns=[Column("name", "Name", sort="name"), Column("key_type", "Type", css="md"), Column("fingerprint", "Fingerprint", css="mono lo"),
             Column("created_at", "Created", sort="created_at", css="lo")],
    quota={"key_pairs": 1}, describe=lambda v: (v.key_type.removeprefix("ssh-"), v.fingerprint[:23] + "…"),
)  # fmt: skip
