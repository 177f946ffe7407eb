"""Signed checkpoints: whatever is done to the log in the database, a verification names the first entry that does not hold."""

import base64
import json
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask.testing import FlaskClient
from prometheus_client import REGISTRY
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel.audit import GENESIS, AuditEntry, AuditHead, Subject, digest, record
from portal.kernel.audit_checkpoints import AuditCheckpoint, AuditKey, AuditVerification, newest_checkpoint, newest_verification
from portal.kernel.audit_keys import ANCHOR_FILE, KEY_FILE, Signer, key_rotate, signer, trust_of
from portal.kernel.audit_verify import Since, Verdict, verify
from portal.kernel.audit_watch import audit_checkpoint, audit_verify, audit_watch
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import Forbidden
from portal.kernel.events import Event
from portal.settings import Settings
from tests.support.people import People
from tests.support.web import Api

FORGER = Signer(Ed25519PrivateKey.generate())


@pytest.fixture
def log(people: People) -> Context:
    """Twelve entries with checkpoints at 4 and 8, written and signed by the portal itself."""
    ctx = people.context(None)
    for number in range(12):
        write(ctx, number)
        if number in {3, 7}:
            assert audit_checkpoint(ctx).broken_seq is None
    return ctx


def write(ctx: Context, number: int) -> None:
    with transaction(ctx.db):
        record(ctx, "test.thing.do", Subject("test.thing", f"t-{number}", f"thing {number}"), details={"number": number})


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


def test_what_was_found_broken_stays_so_until_somebody_looks_there_again(log: Context) -> None:
    audit_watch(log)
    with transaction(log.db):
        log.db.execute(update(AuditEntry).where(AuditEntry.seq == 2).values(username="innocent"))
    assert audit_verify(log).broken_seq == 2
    write(log, 3)
    assert audit_checkpoint(log).broken_seq is None
    assert audit_watch(log).broken_seq is None
    assert newest_verification(log.db).broken_seq == 2


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


def test_verifying_is_for_those_who_read_everything_and_is_in_the_log(log: Context, people: People, api_for: Callable[..., Api]) -> None:
    with pytest.raises(Forbidden):
        audit_verify(people.context(people.user("project_admin")))
    auditor = api_for("auditor")
    for method in ("GET", "POST"):
        found: Verdict = auditor(method, "/security/audit-logs/verify").json
        assert found["is_intact"] is True  # type: ignore[index]
        assert found["checkpoints"] == 2  # type: ignore[index]
    told = log.db.execute(
        select(AuditEntry.username, AuditEntry.status).where(AuditEntry.action == "security.audit.verify").order_by(AuditEntry.seq)
    ).all()
    assert [status for _, status in told] == ["denied", "success", "success"]
    assert log.db.scalars(select(AuditVerification.username)).all() == [auditor.user.username] * 2


def measured(client: FlaskClient) -> tuple[float | None, ...]:
    """Entry verified, entry signed, broken or not, as Prometheus would get them from a portal of one process."""
    assert client.get("/metrics").status_code == 200
    return tuple(REGISTRY.get_sample_value(f"portal_audit_{name}") for name in ("verified_entry", "signed_entry", "broken"))


def test_the_page_says_how_far_the_log_was_verified(log: Context, client_for: Callable[..., FlaskClient], app: object) -> None:
    client = client_for("auditor")
    assert "Chain verified to entry 8" in client.get("/audit").text
    audit_watch(log)
    assert "Chain verified to entry 12" in client.get("/audit").text
    assert measured(client) == (12, 8, 0)
    with transaction(log.db):
        log.db.execute(update(AuditEntry).where(AuditEntry.seq == 10).values(username="innocent"))
    audit_checkpoint(log)
    assert "Chain broken at entry 10" in client.get("/audit").text
    assert measured(client)[2] == 1
