"""Signed checkpoints: whatever is done to the log in the database, a verification names the first entry that does not hold."""

import base64
import json
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel.audit import GENESIS, AuditEntry, AuditHead, digest
from portal.kernel.audit_checkpoints import AuditCheckpoint, AuditKey, newest_checkpoint
from portal.kernel.audit_keys import ANCHOR_FILE, KEY_FILE, Signer, key_rotate, signer, trust_of
from portal.kernel.audit_verify import Since, verify
from portal.kernel.audit_watch import audit_checkpoint, audit_watch
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.events import Event
from portal.settings import Settings
from tests.support.audited import signed_log, write
from tests.support.people import People

FORGER = Signer(Ed25519PrivateKey.generate())


@pytest.fixture
def log(people: People) -> Context:
    """Twelve entries with checkpoints at 4 and 8."""
    return signed_log(people)


def rewrite(session: Session, seq: int, *, until: int | None = None) -> None:
    """Change an entry and everything that hangs on it, as somebody does who knows how the chain is made."""
    entries = session.scalars(select(AuditEntry).where(AuditEntry.seq >= seq).order_by(AuditEntry.seq)).all()
    entries[0].username = "innocent"
    previous = entries[0].previous_hash
    for entry in entries:
        if until is not None and entry.seq > until:
            session.delete(entry)
            continue
        entry.previous_hash = previous
        entry.entry_hash = previous = digest(entry)
    session.execute(update(AuditHead).values(seq=until or entries[-1].seq, hash=previous))


def cut(session: Session, seq: int) -> None:
    """Remove the end of the log and say that it never was there."""
    session.execute(delete(AuditEntry).where(AuditEntry.seq > seq))
    left = session.scalars(select(AuditEntry.entry_hash).where(AuditEntry.seq == seq)).one_or_none()
    session.execute(update(AuditHead).values(seq=seq, hash=left or GENESIS))


def forge(session: Session, number: int) -> None:
    """A checkpoint that says what the rewritten log says, signed with a key of one's own, which the database is told to know."""
    row = session.get_one(AuditCheckpoint, number)
    row.hash = session.scalars(select(AuditEntry.entry_hash).where(AuditEntry.seq == row.seq)).one()
    row.key_id = FORGER.key_id
    row.signature = FORGER.sign(row.content())
    session.merge(AuditKey(key_id=FORGER.key_id, public_key=FORGER.public, at=row.at))


def edited(session: Session) -> None:
    session.execute(update(AuditEntry).where(AuditEntry.seq == 6).values(username="innocent"))


def removed(session: Session) -> None:
    session.execute(delete(AuditEntry).where(AuditEntry.seq == 6))


def reordered(session: Session) -> None:
    for old, new in ((6, 1000), (7, 6), (1000, 7)):
        session.execute(update(AuditEntry).where(AuditEntry.seq == old).values(seq=new))


def numbered_anew(session: Session) -> None:
    """Remove an entry and close the gap, hashes and all."""
    rows = session.scalars(select(AuditEntry).where(AuditEntry.seq > 6).order_by(AuditEntry.seq)).all()
    previous = session.get_one(AuditEntry, 6).previous_hash
    session.execute(delete(AuditEntry).where(AuditEntry.seq == 6))
    for row in rows:
        content = {column.key: getattr(row, column.key) for column in AuditEntry.__table__.columns} | {"seq": row.seq - 1, "previous_hash": previous}
        session.expunge(row)
        fresh = AuditEntry(**content)
        fresh.entry_hash = previous = digest(fresh)
        session.execute(delete(AuditEntry).where(AuditEntry.seq == row.seq))
        session.add(fresh)
        session.flush()
    session.execute(update(AuditHead).values(seq=11, hash=previous))


def changed_signature(session: Session) -> None:
    row = session.get_one(AuditCheckpoint, 1)
    row.signature = base64.b64encode(bytes(64)).decode()


def moved(session: Session) -> None:
    session.execute(update(AuditCheckpoint).where(AuditCheckpoint.number == 2).values(seq=50))


def dropped(session: Session) -> None:
    session.execute(delete(AuditCheckpoint).where(AuditCheckpoint.number == 1))


TAMPERING: dict[str, tuple[Callable[[Session], object], int, str]] = {
    "edited": (edited, 6, "content was changed"),
    "removed": (removed, 6, "entry is missing"),
    "removed and numbered anew": (numbered_anew, 8, "rewritten after entry 4"),
    "re-ordered": (reordered, 6, "re-ordered"),
    "tail cut off": (lambda s: s.execute(delete(AuditEntry).where(AuditEntry.seq > 9)), 10, "cut off"),
    "tail cut off, head rewritten": (lambda s: cut(s, 6), 7, "checkpoint 2 tells of entry 8"),
    "everything cut off, head rewritten": (lambda s: cut(s, 0), 1, "checkpoint 1 tells of entry 4"),
    "head rewritten": (lambda s: s.execute(update(AuditHead).values(hash="0" * 64)), 13, "cut off"),
    "rewritten from the middle": (lambda s: rewrite(s, 6), 8, "rewritten after entry 4: checkpoint 2"),
    "rewritten from the beginning": (lambda s: rewrite(s, 1), 4, "rewritten after entry 0: checkpoint 1"),
    "rewritten and shortened": (lambda s: rewrite(s, 6, until=7), 8, "checkpoint 2 tells of entry 8"),
    "rewritten, with a checkpoint of one's own": (lambda s: (rewrite(s, 6), forge(s, 2)), 8, "which this host does not know"),
    "signature changed": (changed_signature, 4, "signature of checkpoint 1 is wrong"),
    "checkpoint moved": (moved, 8, "keeps outside the database"),
    "checkpoint removed": (dropped, 8, "checkpoint 1 is missing"),
    "rewritten, all checkpoints removed": (lambda s: (rewrite(s, 6), s.execute(delete(AuditCheckpoint))), 8, "keeps outside the database"),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_what_was_tampered_with_is_named(log: Context, database: sessionmaker[Session], settings: Settings, name: str) -> None:
    change, seq, said = TAMPERING[name]
    with database() as session:
        assert verify(session, trust_of(settings)) == replace(verify(session), checkpoints=2)
        with transaction(session):
            change(session)
        verdict = verify(session, trust_of(settings))
    assert (verdict.broken_seq, said in verdict.problem, verdict.entries) == (seq, True, seq - 1), verdict
    assert bool(verdict.broken_id) is (seq <= 12 and name != "removed" and "cut off" not in verdict.problem)


def test_the_first_of_several_broken_entries_is_named(log: Context, settings: Settings) -> None:
    with transaction(log.db):
        log.db.execute(update(AuditEntry).where(AuditEntry.seq.in_((3, 6, 11))).values(username="innocent"))
    assert verify(log.db, trust_of(settings)).broken_seq == 3


def test_a_checkpoint_is_made_of_what_is_new_and_leaves_the_database(
    log: Context, database: sessionmaker[Session], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "portal.audit"):
        audit_checkpoint(log)
        audit_checkpoint(log)
    with database() as session:
        made = newest_checkpoint(session)
        assert made is not None
        head = session.get_one(AuditHead, 1)
        assert (made.number, made.seq, made.hash) == (3, 12, head.hash)
        known = session.get_one(AuditKey, made.key_id)
        assert trust_of(settings).keys[known.key_id].public_bytes_raw() == base64.b64decode(known.public_key)
        said = [each.getMessage() for each in caplog.records]
        assert len(said) == 1
        assert all(part in said[0] for part in (made.hash, made.signature, made.key_id))
    assert json.loads((settings.data_dir / ANCHOR_FILE).read_text()) == {"number": 3, "seq": 12, "hash": made.hash}
    assert (settings.data_dir / KEY_FILE).stat().st_mode & 0o777 == 0o600
    private = (settings.data_dir / KEY_FILE).read_text().split()[0]
    assert private not in "".join(map(str, database().execute(select(AuditKey.public_key, AuditKey.key_id)).all()))


def test_what_does_not_hold_is_not_signed_and_raises_the_alarm_once(log: Context, database: sessionmaker[Session]) -> None:
    with transaction(log.db):
        log.db.execute(update(AuditEntry).where(AuditEntry.seq == 10).values(username="innocent"))
    for _ in range(2):
        assert audit_checkpoint(log).broken_seq == 10
        assert audit_watch(log).broken_seq == 10
    with database() as session:
        assert session.scalar(select(func.count()).select_from(AuditCheckpoint)) == 2
        (event,) = session.scalars(select(Event).where(Event.type == "security.audit.broken"))
        assert (event.payload["entry"], event.payload["problem"]) == (10, "content was changed")
        (entry,) = session.scalars(select(AuditEntry).where(AuditEntry.action == "security.audit.verify"))
        assert (entry.status, entry.details["broken_seq"]) == ("failure", 10)


def test_a_verification_can_begin_where_the_last_one_ended(log: Context, settings: Settings) -> None:
    trust = trust_of(settings)
    assert audit_watch(log).entries == 12
    assert [verify(log.db, trust, since=since).entries for since in Since] == [12, 4, 4]
    write(log, 13)
    audit_checkpoint(log)
    assert [verify(log.db, trust, since=since).entries for since in Since] == [13, 0, 5]
    with transaction(log.db):
        log.db.execute(update(AuditEntry).where(AuditEntry.seq == 2).values(username="innocent"))
        log.db.execute(update(AuditCheckpoint).where(AuditCheckpoint.number == 3).values(hash="0" * 64))
    # What lies before a checkpoint that is good is not looked at; one that is not good is no place to begin.
    assert [verify(log.db, trust, since=since).broken_seq for since in Since] == [2, 13, 13]


def test_keys_are_replaced_and_the_old_ones_still_believed(log: Context, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signer(settings)
    fresh = key_rotate(settings)
    write(log, 13)
    audit_checkpoint(log)
    made = newest_checkpoint(log.db)
    assert made is not None
    assert (made.key_id, fresh) == (fresh, signer(settings).key_id)
    assert set(trust_of(settings).keys) == {before.key_id, fresh}
    assert verify(log.db, trust_of(settings)) == replace(verify(log.db), checkpoints=3)
    elsewhere = settings.model_copy(update={"audit_signing_key": type(settings.audit_signing_key)(base64.b64encode(bytes(range(32))).decode())})
    assert "which this host does not know" in verify(log.db, trust_of(elsewhere)).problem
    assert "audit_key" not in repr(before)


def test_a_host_without_a_key_says_that_it_checked_no_signature(log: Context) -> None:
    found = verify(log.db)
    assert (found.broken_seq, found.checkpoints) == (None, 0)


def test_a_verification_of_what_is_new_reads_few_checkpoints(log: Context, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each quarter of an hour costs does not grow with the age of the log."""
    for number in range(12, 20):
        write(log, number)
        audit_checkpoint(log)
    trust, asked = trust_of(settings), list[str]()
    whole = type(trust).is_signed
    monkeypatch.setattr(type(trust), "is_signed", lambda self, content, *rest: asked.append(str(content["kind"])) or whole(self, content, *rest))  # type: ignore[func-returns-value]
    assert verify(log.db, trust, since=Since.CHECKPOINT).broken_seq is None
    assert len(asked) <= 2
    asked.clear()
    assert verify(log.db, trust).checkpoints == 10
    assert len(asked) == 10


def test_a_short_verification_misses_the_checkpoint_that_the_host_knows(log: Context, settings: Settings) -> None:
    """Another host has made later ones; the one that this host keeps is still asked for."""
    kept = (settings.data_dir / ANCHOR_FILE).read_text()
    write(log, 12)
    audit_checkpoint(log)
    (settings.data_dir / ANCHOR_FILE).write_text(kept)
    assert verify(log.db, trust_of(settings), since=Since.CHECKPOINT).broken_seq is None
    with transaction(log.db):
        log.db.execute(delete(AuditCheckpoint).where(AuditCheckpoint.number == 2))
    found = verify(log.db, trust_of(settings), since=Since.CHECKPOINT)
    assert (found.broken_seq, "keeps outside the database" in found.problem) == (8, True)
