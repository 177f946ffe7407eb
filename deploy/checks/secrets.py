"""Look for secrets in the files that Git tracks: `python deploy/checks/secrets.py [FILE…]` prints where and exits with 1 if there are any.

Knows what credentials look like by their form, and secrets by name that are assigned a long literal. It does not judge entropy: that finds hashes.
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIGGEST_BYTES = 2_000_000
# Lock files hold digests in bulk, and nothing else that a person writes.
LOCKS = re.compile(r"(requirements[\w-]*|tools|build)\.txt$|package-lock\.json$")
# A line that has to show such a value says so, and why.
ALLOWED = "not-a-secret:"

FORMS = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s*[A-Za-z0-9+/=]{16}"),
    "cloud access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "platform token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{20,}|npm_[A-Za-z0-9]{36})\b"),
    "portal token": re.compile(r"\batonix(?:_|\.[ar]\.)[A-Za-z0-9_-]{24,}"),
    "signed token": re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    "password in a URL": re.compile(r"\b[a-z][a-z0-9+]*://[^\s/:@$\"'{}]+:(?![*$<{%])[^\s/:@\"'{}]{8,}@"),
    "assigned secret": re.compile(
        r"(?i)\b\w*(?:password|passwd|secret|api_?key|access_?key|token)\w*[\"']?\s*[:=]\s*[\"'](?=[^\"'\s]*[0-9])(?=[^\"'\s]*[A-Za-z])[A-Za-z0-9+/=_-]{20,}[\"']"
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One suspicious place."""

    path: str
    line: int
    what: str


def find(path: str, content: str) -> Iterator[Finding]:
    """List what in this text looks like a secret."""
    lines = content.splitlines()
    for what, form in FORMS.items():
        for found in form.finditer(content):
            number = content.count("\n", 0, found.start()) + 1
            if ALLOWED not in lines[number - 1]:
                yield Finding(path, number, what)


def tracked() -> list[str]:
    """All files that Git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if name]


def scan(names: Iterable[str]) -> list[Finding]:
    """All findings in these files; binary and very large files are left out."""
    findings: list[Finding] = []
    for name in names:
        path = ROOT / name
        if LOCKS.search(name) or not path.is_file() or path.stat().st_size > BIGGEST_BYTES:
            continue
        data = path.read_bytes()
        if b"\0" not in data:
            findings.extend(find(name, data.decode(errors="replace")))
    return findings


def main() -> int:
    """Scan what was named, or everything."""
    findings = scan(sys.argv[1:] or tracked())
    for finding in findings:
        sys.stderr.write(f"{finding.path}:{finding.line}: looks like a secret ({finding.what})\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
