"""Copies of the audit log elsewhere: each receiver gets every entry at least once and in order, from where its cursor stands.

The cursor moves on after the receiver has taken a batch. Who dies in between sends that batch again; nothing is left out. Entries that are archived
are sent from their files; what is neither in the log nor in a file is passed over, and that is told for good.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path

from sqlalchemy.orm import Session

from portal.kernel.audit_archives import archive_of, lines_of, problem_of_file
from portal.kernel.audit_lines import SEQ, Line, entry_of, lines_after
from portal.kernel.audit_streams import AuditStream, NotTaken, Receiver
from portal.kernel.db import now, transaction

BATCH = 200
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 900.0

log = logging.getLogger("portal.audit")


def stream_on(session: Session, receiver: Receiver, files: Path, *, until: Callable[[], bool]) -> None:
    """Send what a receiver does not have, batch by batch, until it has everything, does not take any more, or `until` says stop.

    `files` is where archives are. Whatever goes wrong is this receiver's alone: it is noted, and the next try comes later.
    """
    with transaction(session):
        row = session.get(AuditStream, receiver.name, with_for_update=True, populate_existing=True)
        if row is None:
            row = AuditStream(name=receiver.name)
            session.add(row)
            session.flush()
        seq, next_try_at = row.last_seq, row.next_try_at
    if next_try_at > now():
        return
    try:
        for batch, missing in _batches(session, files, seq):
            if until():
                return
            receiver.send([entry_of(line) for line in batch])
            _moved(session, receiver.name, batch[-1][SEQ], missing)
    except NotTaken as error:
        _failed(session, receiver.name, str(error))
    except Exception as error:
        log.exception("audit stream %s", receiver.name)
        _failed(session, receiver.name, f"Something unexpected went wrong in the portal itself ({type(error).__name__}); its log has the details.")


def _batches(session: Session, files: Path, seq: int) -> Iterator[tuple[Sequence[Line], str]]:
    """What comes after an entry, in batches without gaps, and what is missing before each. Raises NotTaken where a file does not hold."""
    while True:
        session.rollback()
        lines = list(lines_after(session, seq, most=BATCH))
        archive = archive_of(session, seq + 1) if not lines or lines[0][SEQ] != seq + 1 else None
        session.rollback()
        if archive is not None:
            if problem := problem_of_file(archive, files / archive.file):
                raise NotTaken(f"What comes next is archived, and the {problem}.")
            archived = (line for line in lines_of(files / archive.file) if line[SEQ] > seq)
            while batch := list(islice(archived, BATCH)):
                yield batch, ""
            seq = archive.last_seq
            continue
        if not lines:
            return
        first = lines[0][SEQ]
        missing = "" if first == seq + 1 else f"Entries {seq + 1:,} to {first - 1:,} were not in the log any more when they were to be sent."
        whole = [line for place, line in enumerate(lines) if line[SEQ] == first + place]
        yield whole, missing
        seq = whole[-1][SEQ]


def _moved(session: Session, name: str, seq: int, missing: str) -> None:
    with transaction(session):
        row = session.get_one(AuditStream, name, with_for_update=True, populate_existing=True)
        row.last_seq, row.last_error, row.failures, row.at = max(row.last_seq, seq), "", 0, now()
        if missing:
            log.critical("audit stream %s: %s", name, missing)
            row.passed_over = f"{row.passed_over} {missing}".strip()[:2000]


def _failed(session: Session, name: str, problem: str) -> None:
    with transaction(session):
        row = session.get_one(AuditStream, name, with_for_update=True, populate_existing=True)
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(row.failures, 16))
        row.last_error, row.failures, row.next_try_at = problem[:2000], row.failures + 1, now() + timedelta(seconds=wait_s)
        log.warning("audit stream %s: %s; trying again in %.0f s", name, problem, wait_s)
