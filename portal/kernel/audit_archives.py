"""Archives: old entries of the audit log, moved into signed files; the chain goes on from the end of the last archive.

Rows are deleted only in the transaction that records their archive, and only after the file was read back. Wherever a process dies, each entry is in
the table, in a file, or in both.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import BigInteger, String, delete, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel import audit
from portal.kernel.audit import GENESIS, AuditEntry, canonical
from portal.kernel.audit_checkpoints import newest_checkpoint
from portal.kernel.audit_keys import Signer, Trust
from portal.kernel.audit_lines import DETAILS, FIELDS, HASH, PREVIOUS, SEQ, TIMESTAMP, Line, entry_of, is_whole, lines_after
from portal.kernel.audit_query import CLOCK_SLACK
from portal.kernel.audit_streams import streams
from portal.kernel.context import Context
from portal.kernel.db import Base, UtcDateTime, now, transaction
from portal.kernel.files import part_of, publish, sha256_of, write_whole, writing
from portal.settings import Settings

# One file, and one transaction that deletes: others want to write meanwhile.
MOST = 20_000
# How a packed file begins.
GZIP = b"\x1f\x8b"
ARCHIVE = "security.audit.archive"


class AuditArchive(Base):
    """A file with entries that are no longer in the table."""

    __tablename__ = "audit_archives"

    first_seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    last_seq: Mapped[int] = mapped_column(BigInteger)
    first_previous_hash: Mapped[str] = mapped_column(String(64))
    last_hash: Mapped[str] = mapped_column(String(64))
    file: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    key_id: Mapped[str] = mapped_column(String(64))
    signature: Mapped[str] = mapped_column(String(128))

    def content(self) -> Mapping[str, object]:
        """What is signed: the manifest beside the file."""
        return {
            "kind": "audit archive", "first_seq": self.first_seq, "last_seq": self.last_seq, "first_previous_hash": self.first_previous_hash,
            "last_hash": self.last_hash, "file": self.file, "sha256": self.sha256, "at": self.at.astimezone(UTC).isoformat(), "key_id": self.key_id,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Archived:
    """Where the archives end, or which of them is wrong."""

    seq: int = 0
    hash: str = GENESIS
    broken_seq: int | None = None
    problem: str = ""


class Damaged(Exception):
    """Entries that were to be archived, or were, do not form the chain."""


def directory(settings: Settings) -> Path:
    """Where the files are."""
    return settings.data_dir / "audit-archive"


def archives(session: Session) -> Sequence[AuditArchive]:
    """All of them, oldest first."""
    return session.scalars(select(AuditArchive).order_by(AuditArchive.first_seq)).all()


def archive_of(session: Session, seq: int) -> AuditArchive | None:
    """The archive that has an entry."""
    return session.scalars(select(AuditArchive).where(AuditArchive.first_seq <= seq, AuditArchive.last_seq >= seq)).first()


def archives_end(
    session: Session, trust: Trust, *, files: Path | None = None, report: Callable[[str], None] | None = None, is_short: bool = False
) -> Archived:
    """Where the archives end, if they are signed and follow each other; with `files`, every file is read as well.

    `is_short` looks at the last one alone: that is enough to know where to go on. `report` is told which file is being read.
    """
    newest = select(AuditArchive).order_by(AuditArchive.first_seq.desc()).limit(1)
    rows = session.scalars(newest).all() if is_short else archives(session)
    seq, previous = (rows[0].first_seq - 1, rows[0].first_previous_hash) if rows and is_short else (0, GENESIS)
    for row in rows:
        problem = _problem_of(row, seq, previous, trust)
        if not problem and files is not None:
            if report is not None:
                report(f"Archived entries {row.first_seq:,} to {row.last_seq:,}.")
            problem = problem_of_file(row, files / row.file)
        if problem:
            return Archived(seq, previous, row.first_seq, problem)
        seq, previous = row.last_seq, row.last_hash
    lowest = session.scalar(select(func.min(AuditEntry.seq)))
    if lowest is not None and lowest <= seq:
        return Archived(seq, previous, lowest, "entry is archived and yet in the log")
    return Archived(seq, previous)


def _problem_of(row: AuditArchive, seq: int, previous: str, trust: Trust) -> str:
    if (row.first_seq, row.first_previous_hash) != (seq + 1, previous):
        return f"archive {row.file} does not follow what comes before it"
    if trust.keys and not trust.is_signed(row.content(), row.key_id, row.signature):
        return f"the signature of archive {row.file} is wrong, or its key is not known on this host"
    return ""


def problem_of_file(row: AuditArchive, path: Path) -> str:
    """What is wrong with a file; empty if it has every entry, as it was written."""
    if not path.is_file():
        return f"archive {row.file} is not there"
    if sha256_of(path) != row.sha256:
        return f"archive {row.file} was changed"
    try:
        end = _walked(lines_of(path), row.first_seq, row.first_previous_hash)
    except (Damaged, OSError, EOFError, ValueError, KeyError) as error:
        return f"archive {row.file} does not hold: {error}"
    return "" if end == (row.last_seq, row.last_hash) else f"archive {row.file} ends with another entry than its manifest says"


def archive_next(ctx: Context, key: Signer, trust: Trust, *, is_first: bool = True) -> AuditArchive | None:
    """Move the oldest entries that are old enough, signed and copied into an archive; None if there are none. Raises Damaged.

    The archives before are looked at only for the first of several.
    """
    session, home = ctx.db, directory(ctx.settings)
    session.rollback()
    start = archives_end(session, trust, is_short=not is_first)
    if start.broken_seq is not None:
        raise Damaged(start.problem)
    last = min(_newest_allowed(ctx), start.seq + MOST)
    if last <= start.seq:
        session.rollback()
        return None
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"audit-{start.seq + 1:012d}-{last:012d}.jsonl.gz"
    part = part_of(home / name)
    end = _write(part, lines_after(session, start.seq, until=last), start)
    session.rollback()
    row = AuditArchive(
        first_seq=start.seq + 1, last_seq=end[0], first_previous_hash=start.hash, last_hash=end[1], file=name, sha256=sha256_of(part), at=now(),
        key_id=key.key_id,
    )  # fmt: skip
    row.signature = key.sign(row.content())
    if problem := problem_of_file(row, part):
        part.unlink(missing_ok=True)
        raise Damaged(problem)
    manifest = {**row.content(), "public_key": key.public, "signature": row.signature}
    _publish(home, part, name, json.dumps(manifest, indent=1))
    with transaction(session):
        session.add(row)
        session.execute(
            delete(AuditEntry).where(AuditEntry.seq >= row.first_seq, AuditEntry.seq <= row.last_seq).execution_options(synchronize_session=False)
        )
        told = {"first_seq": row.first_seq, "last_seq": row.last_seq, "sha256": row.sha256}
        audit.record(ctx, ARCHIVE, audit.Subject("security.audit_archive", "", name), details=told)
    return row


def _newest_allowed(ctx: Context) -> int:
    """The last entry that may go: old enough, covered by a checkpoint, and taken by every receiver of copies."""
    session, before = ctx.db, now() - timedelta(days=ctx.settings.audit_retention_days)
    signed = newest_checkpoint(session)
    # The newest of the old ones, by the index of times; those before it in the log are at most so much younger as clocks differ.
    older = select(AuditEntry.seq).where(AuditEntry.timestamp < before - CLOCK_SLACK)
    old = session.scalar(older.order_by(AuditEntry.timestamp.desc(), AuditEntry.seq.desc()).limit(1))
    return min([old or 0, signed.seq if signed else 0, *(row.last_seq for row, _ in streams(session, ctx.settings))])


def _write(part: Path, lines: Iterator[Line], start: Archived) -> tuple[int, str]:
    """Write entries, walking the chain; number and hash of the last."""
    with writing(part) as out, gzip.GzipFile(fileobj=out, mode="wb", mtime=0, filename="") as packed:

        def kept() -> Iterator[Line]:
            for line in lines:
                packed.write((json.dumps(entry_of(line), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
                yield line

        return _walked(kept(), start.seq + 1, start.hash)


def _walked(lines: Iterable[Line], seq: int, previous: str) -> tuple[int, str]:
    """Number and hash of the last entry of a chain that begins here. Raises Damaged."""
    for line in lines:
        if line[SEQ] != seq or line[PREVIOUS] != previous or not is_whole(line):
            msg = f"entry {seq} is not as it was written"
            raise Damaged(msg)
        seq, previous = seq + 1, line[HASH]
    return seq - 1, previous


def lines_of(path: Path) -> Iterator[Line]:
    """The entries of a file, packed or not, as the database would give them."""
    with path.open("rb") as file:
        is_packed = file.read(len(GZIP)) == GZIP
    with (gzip.open if is_packed else open)(path, "rt", encoding="utf-8", errors="surrogatepass") as packed:
        for text in packed:
            found = json.loads(text)
            line = [found[name] for name in FIELDS]
            line[DETAILS], line[TIMESTAMP] = canonical(found["details"]), str(found["timestamp"]).removesuffix("+00:00")
            yield [*line, found["entry_hash"]]


def _publish(home: Path, part: Path, name: str, manifest: str) -> None:
    """Give file and manifest their names, so that both are on the disk."""
    write_whole(home / f"{name}.json", manifest.encode())
    publish(part, home / name)
