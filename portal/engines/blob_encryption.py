"""Encryption of blobs, segment by segment, so that a range is decrypted without what is before it.

Each blob has a key of its own, derived from the one it is written with and an identity, which is random: one key serves any number of blobs. A segment
is AES-256-GCM; its nonce is its number, and the identity, the number and whether it is the last one are authenticated. A segment that was left out,
moved, or taken from another blob is found.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from portal.engines.object_ports import BlobDamaged

TAG_BYTES = 16
KEY_BYTES = 32
NONCE_BYTES = 12


class SegmentCipher:
    """Encrypts and decrypts the segments of one blob."""

    def __init__(self, key: bytes, identity: bytes) -> None:
        """`key` has 32 bytes."""
        self._identity = identity
        own = HKDF(SHA256(), KEY_BYTES, salt=identity, info=b"portal: blob").derive(key)
        self._cipher = AESGCM(own)

    def encrypt(self, number: int, data: bytes | bytearray, *, is_last: bool) -> bytes:
        """A segment as it is stored: longer by its tag."""
        return self._cipher.encrypt(number.to_bytes(NONCE_BYTES), bytes(data), self._about(number, is_last=is_last))

    def decrypt(self, number: int, data: bytes | memoryview, *, is_last: bool) -> bytes:
        """A segment as it was written. Raises BlobDamaged."""
        try:
            return self._cipher.decrypt(number.to_bytes(NONCE_BYTES), bytes(data), self._about(number, is_last=is_last))
        except InvalidTag:
            raise BlobDamaged("A part of this object does not decrypt: it is another one, or was encrypted with another key.") from None

    def _about(self, number: int, *, is_last: bool) -> bytes:
        return self._identity + number.to_bytes(8) + bytes([is_last])
