"""Programs of others that speak S3, run against a gateway as their users would run them. `make setup-dev` installs them."""

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from portal.settings import ROOT
from tests.support.s3_served import Served

BIN = ROOT / ".venv" / "s3-clients" / "bin"
MIB = 1 << 20
LIMIT_S = 300
# What a file's name can be, and clients have got wrong before.
ODD_NAMES = (
    "a b",
    "ü/日本語",
    "plus+plus",
    "100%",
    "%2F%41",
    "q?a=b&c#d",
    "it's (fine)!*",
    "a:b;c,d@e=f$g",
    "tilde~_-.txt",
    "[x]{y}|^`",
    " leading",
    "deep/er/and/deeper",
)
# What only a key can be.
ODD_KEYS = (
    *ODD_NAMES,
    "two//slashes",
    "//",
    "/front",
    "back/",
    "a/../b",
    "./here",
    "dot/./dot",
    "tab\tnewline\nbell",
    "\u00e9 and e\u0301",
    "<&>'\"",
    "x" * 1024,
)
KEYS_THAT_LEAD_OUT = ("../up", "a/../../up", "..")


@dataclass(frozen=True)
class Program:
    """One client with the gateway, the key and the certificate in its environment."""

    served: Served
    home: Path

    def environment(self, program: str) -> dict[str, str]:
        """What clients look for; nothing of the user who runs the tests."""
        told = {
            "HOME": str(self.home), "PATH": f"{BIN}:{os.environ['PATH']}", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TMPDIR": str(self.home),
            "AWS_ACCESS_KEY_ID": self.served.key_id, "AWS_SECRET_ACCESS_KEY": self.served.secret, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.served.url, "AWS_PAGER": "", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
            "S3_ENDPOINT_URL": self.served.url, "RESTIC_PASSWORD": "a password of the test",
            "RCLONE_CONFIG": str(self.home / "rclone.conf"), "RCLONE_CONFIG_S_TYPE": "s3", "RCLONE_CONFIG_S_PROVIDER": "Other", "RCLONE_CONFIG_S_ENV_AUTH": "true",
            "RCLONE_CONFIG_S_ENDPOINT": self.served.url, "RCLONE_CONFIG_S_REGION": "us-east-1", "RCLONE_RETRIES": "1",
        }  # fmt: skip
        if self.served.ca_file is not None:
            # Clients differ in where they look, and rclone stumbles over what the others need.
            names = ("RCLONE_CA_CERT",) if program == "rclone" else ("AWS_CA_BUNDLE", "SSL_CERT_FILE")
            told |= {name: str(self.served.ca_file) for name in names}
        return told

    def __call__(self, *words: str | Path, given: bytes | None = None, succeeds: bool = True) -> str:
        """What the program prints. It must succeed, or fail where that is wanted; then both outputs are given."""
        done = subprocess.run(
            [str(word) for word in words], env=self.environment(str(words[0])), cwd=self.home, input=given, stdin=None if given is not None else subprocess.DEVNULL,
            capture_output=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        out, error = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert (done.returncode == 0) is succeeds, f"{words} ended with {done.returncode}\n{out[-2000:]}\n{error[-4000:]}"
        return out if succeeds else out + error


def python_of_clients() -> Path:
    """The interpreter that has their libraries."""
    return BIN / "python"


def content(name: str, size: int) -> bytes:
    """Bytes that differ from name to name and are the same every time."""
    return hashlib.shake_128(name.encode()).digest(size)


def tree(directory: Path) -> Path:
    """Files of many names and sizes, two of them larger than a part."""
    for name, size in {**dict.fromkeys(ODD_NAMES, 100), "empty": 0, "one": 1, "large": 11 * MIB + 3, "deep/exact": 10 * MIB}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name, size))
    return directory


def contents(directory: Path) -> dict[str, str]:
    """What is in a directory, by name: a digest of each file."""
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.rglob("*") if path.is_file()}
