"""Verification without the database: an archive, or an export as JSON lines, with what was signed of the entries in it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.kernel.audit_archives import lines_of
from portal.kernel.audit_checkpoints import AuditKey, checkpoints
from portal.kernel.audit_keys import Trust
from portal.kernel.audit_lines import HASH, PREVIOUS, SEQ, Line, is_whole
from portal.kernel.files import sha256_of

UNSIGNED = ("public_key", "signature")


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """What a file holds: how many entries, from where to where, how often some are left out, and how many of them a signature covers.

    `signed_to` is the last entry that was signed, in the file or not.
    """

    entries: int = 0
    first_seq: int = 0
    last_seq: int = 0
    gaps: int = 0
    covered: int = 0
    signatures: int = 0
    signed_to: int = 0
    broken_seq: int | None = None
    problem: str = ""


class Odd(Exception):
    """What does not hold, at an entry if it is known which."""

    def __init__(self, problem: str, seq: int | None = None) -> None:
        """`problem` is for who verifies."""
        super().__init__(problem)
        self.seq = seq


def signed_checkpoints(session: Session) -> Iterator[dict[str, object]]:
    """All checkpoints with their signatures and public keys, for whoever verifies elsewhere."""
    keys = {key.key_id: key.public_key for key in session.scalars(select(AuditKey))}
    for row in checkpoints(session):
        yield {**row.content(), "public_key": keys.get(row.key_id, ""), "signature": row.signature}


def verify_file(path: Path, trust: Trust, signed: Path | None = None) -> FileVerdict:
    """Check every entry, that neighbours follow each other, and what was signed: by the manifest beside an archive, and by a file of checkpoints.

    Only signatures of keys that `trust` has are believed; those that a file brings along are not.
    """
    walk = _Walk()
    try:
        marks = _marks(path, trust, signed)
        for line in lines_of(path):
            walk.step(line, marks)
    except Odd as error:
        return walk.verdict({}, error.seq, str(error))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        return walk.verdict({}, None, f"the file cannot be read: {error or type(error).__name__}")
    return walk.verdict(marks)


class _Walk:
    """Through the entries of a file, oldest or newest first."""

    def __init__(self) -> None:
        self.before: Line | None = None
        self.entries = self.gaps = self.covered = self.waiting = self.direction = 0
        self.lowest = self.highest = 0
        self.is_under = False

    def step(self, line: Line, marks: Mapping[int, str]) -> None:
        """The next entry. Raises Odd."""
        seq: int = line[SEQ]
        if not is_whole(line):
            raise Odd("content was changed", seq)
        if self.before is not None:
            self._follow(self.before, line)
        if seq in marks:
            if marks[seq] != line[HASH]:
                raise Odd("was rewritten: what was signed has another hash", seq)
            # What leads up to a signed entry without a gap is as it was.
            self.covered, self.waiting, self.is_under = self.covered + self.waiting + 1, 0, self.direction <= 0
        elif self.is_under and self.direction < 0:
            self.covered += 1
        else:
            self.waiting += 1
        self.lowest, self.highest = min(self.lowest or seq, seq), max(self.highest, seq)
        self.entries, self.before = self.entries + 1, line

    def _follow(self, before: Line, line: Line) -> None:
        step = 1 if line[SEQ] > before[SEQ] else -1
        if line[SEQ] == before[SEQ] or self.direction not in {0, step}:
            raise Odd("is out of order", line[SEQ])
        self.direction = step
        older, newer = (before, line) if step > 0 else (line, before)
        if newer[SEQ] != older[SEQ] + 1:
            self.gaps, self.waiting, self.is_under = self.gaps + 1, 0, False
        elif newer[PREVIOUS] != older[HASH]:
            raise Odd("does not follow the entry before it", newer[SEQ])
        if step < 0 and not self.is_under:
            self.waiting = 0

    def verdict(self, marks: Mapping[int, str], broken: int | None = None, problem: str = "") -> FileVerdict:
        """What was found so far."""
        signed_to = max(marks, default=0)
        return FileVerdict(self.entries, self.lowest, self.highest, self.gaps, self.covered, len(marks), signed_to, broken, problem)


def _marks(path: Path, trust: Trust, signed: Path | None) -> dict[int, str]:
    """Entry number → the hash that was signed. Raises Odd."""
    marks: dict[int, str] = {}
    manifest = path.with_name(f"{path.name}.json")
    if manifest.is_file():
        content = _signed(json.loads(manifest.read_text()), trust)
        if content["sha256"] != sha256_of(path):
            raise Odd("the file is not the one that its manifest tells of")
        marks[int(content["last_seq"])] = str(content["last_hash"])
    if signed is not None:
        for text in signed.read_text().splitlines():
            content = _signed(json.loads(text), trust)
            marks[int(content["seq"])] = str(content["hash"])
    return marks


def _signed(found: dict[str, Any], trust: Trust) -> dict[str, Any]:
    content = {name: value for name, value in found.items() if name not in UNSIGNED}
    if not trust.is_signed(content, str(content["key_id"]), str(found["signature"])):
        what = f"{content.get('kind', 'signature')} {content.get('number', '')}".strip()
        raise Odd(f"the signature of {what} is wrong, or its key {str(content['key_id'])[:16]}… is not one that you trust")
    return content
