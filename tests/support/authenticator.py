"""A security key in software, which answers as a browser passes it on."""

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from webauthn.helpers import base64url_to_bytes, bytes_to_base64url

PRESENT, VERIFIED, NEW = 1, 4, 64


@dataclass
class SecurityKey:
    """One passkey; `counts` says whether it counts its signatures."""

    origin: str = "http://localhost"
    host: str = "localhost"
    verifies: bool = True
    id: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    count: int = 0

    def make(self, options: str) -> str:
        """The answer to a request for a new passkey."""
        numbers = self.key.public_key().public_numbers()
        cose = {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
        data = self._data(NEW) + bytes(16) + len(self.id).to_bytes(2, "big") + self.id + cbor2.dumps(cose)
        attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        return self._answer({"clientDataJSON": self._client("webauthn.create", options), "attestationObject": bytes_to_base64url(attestation)})

    def sign(self, options: str) -> str:
        """The answer to a request for a known one."""
        self.count += 1
        data, client = self._data(0), self._client("webauthn.get", options)
        signature = self.key.sign(data + hashlib.sha256(base64url_to_bytes(client)).digest(), ec.ECDSA(SHA256()))
        return self._answer({"clientDataJSON": client, "authenticatorData": bytes_to_base64url(data), "signature": bytes_to_base64url(signature)})

    def _data(self, flags: int) -> bytes:
        flags |= PRESENT | (VERIFIED if self.verifies else 0)
        return hashlib.sha256(self.host.encode()).digest() + bytes([flags]) + self.count.to_bytes(4, "big")

    def _client(self, kind: str, options: str) -> str:
        return bytes_to_base64url(json.dumps({"type": kind, "challenge": json.loads(options)["challenge"], "origin": self.origin}).encode())

    def _answer(self, response: dict[str, Any]) -> str:
        shown = bytes_to_base64url(self.id)
        return json.dumps({"id": shown, "rawId": shown, "type": "public-key", "clientExtensionResults": {}, "response": response})
