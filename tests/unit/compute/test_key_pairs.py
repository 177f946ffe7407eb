"""Public keys: what is accepted is what ssh accepts, and nothing rides along."""

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from portal.compute.key_pairs import generate, parse_public_key
from portal.kernel.errors import InvalidRequest


def line_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | dsa.DSAPrivateKey) -> str:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


ED25519 = line_of(ed25519.Ed25519PrivateKey.generate())
BLOB = ED25519.split()[1]


def keygen_fingerprint(path: Path, line: str) -> str:
    path.write_text(line + "\n")
    return subprocess.run(["ssh-keygen", "-lf", str(path)], check=True, capture_output=True, text=True).stdout.split()[1]


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "p256", "p384", "p521"])
def test_what_ssh_accepts_is_accepted(kind: str, tmp_path: Path) -> None:
    make = {
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    }[kind]
    line = line_of(make())
    normal, key_type, fingerprint = parse_public_key(f"  {line}   me at   home \n")
    assert normal == f"{line} me at   home"
    assert key_type == line.split()[0]
    assert fingerprint == keygen_fingerprint(tmp_path / "key.pub", line)


REFUSED = {
    "nothing": "",
    "text": "hello",
    "type alone": "ssh-ed25519",
    "no base64": "ssh-ed25519 !!!!",
    "base64 of nothing": "ssh-ed25519 AAAA",
    "cut short": ED25519[:-6],
    "longer than the key": f"ssh-ed25519 {base64.b64encode(base64.b64decode(BLOB) + b'more').decode()}",
    "another type in front": f"ssh-rsa {BLOB}",
    "an unknown type": f"ssh-foo {BLOB}",
    "options in front": f'command="rm -rf /" {ED25519}',
    "options that allow": f"no-pty {ED25519}",
    "two lines": f"{ED25519}\n{ED25519}",
    "a comment with a line break": f"{ED25519} me\rssh-rsa AAAA",
    "a comment with a next line": f"{ED25519} me\x85{ED25519}",
    "a comment with a line separator": f"{ED25519} me\u2028{ED25519}",
    "a private key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n",
    "a weak RSA key": line_of(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - to be refused
    "a key of an outdated kind": "ssh-dss AAAAB3NzaC1kc3MAAACBAP",
    "not ASCII": f"ssh-ed25519 {BLOB[:-2]}éé",
    "a lone surrogate": "ssh-ed25519 \ud800",
    "very long": "ssh-rsa " + "A" * 100_000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_without_being_repeated(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_public_key(REFUSED[name])
    assert "public_key" in refused.value.details
    assert len(refused.value.message) < 300
    assert "PRIVATE" not in refused.value.message


@pytest.mark.parametrize("comment", ["me", "with space", "line\u2028separator", "next\x85line", "ä", ""])
def test_a_generated_pair_is_one_that_ssh_reads(comment: str, tmp_path: Path) -> None:
    public, private = generate(comment)
    line, key_type, fingerprint = parse_public_key(public)
    assert key_type == "ssh-ed25519"
    path = tmp_path / "id"
    path.write_text(private)
    path.chmod(0o600)
    derived = subprocess.run(["ssh-keygen", "-yf", str(path)], check=True, capture_output=True, text=True).stdout
    assert derived.split()[:2] == line.split()[:2]
    assert keygen_fingerprint(tmp_path / "id.pub", line) == fingerprint
    assert generate(comment)[1] != private
