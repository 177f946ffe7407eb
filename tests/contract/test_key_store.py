"""The key store: what is wrapped, who may unwrap it, what is found to be altered, and what a rotation does."""

import base64
import logging
import os
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from pydantic import SecretStr
from sqlalchemy import select, update

from portal.cli import main
from portal.kernel.audit import AuditEntry
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import Conflict, Forbidden, StateConflict
from portal.kernel.operations import run
from portal.kernel.quota import held_by
from portal.kernel.runner import TaskRun
from portal.security.encryption_keys import (
    default_key_ensure,
    key_authorize,
    key_cancel_deletion,
    key_create,
    key_delete,
    key_disable,
    key_enable,
    key_rotate,
    key_schedule_deletion,
    key_update,
)
from portal.security.key_models import EncryptionKey, KeyUsage, KeyVersion
from portal.security.key_store import (
    KeyDisabled,
    KeyGone,
    KeyPendingDeletion,
    NotWrappedHere,
    data_key,
    default_key,
    rewrap,
    unwrap,
    wrapped_by,
)
from portal.security.key_tending import tend_keys
from portal.security.key_usage import USAGE_LOG, note_use
from portal.security.master_keys import KEY_FILE, MasterKeyMissing
from portal.settings import Settings
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.racing import race


@pytest.fixture
def ctx(people: People) -> Context:
    return people.context(people.user("project_admin"))


def made(ctx: Context, **given: Any) -> EncryptionKey:
    row: EncryptionKey = run(ctx, key_create, None, {"name": "a-key", **given}).row
    return row


def test_a_data_key_is_unwrapped_by_whoever_says_what_it_is_for(ctx: Context, settings: Settings) -> None:
    key = made(ctx)
    one, other = (data_key(ctx.db, settings, key, context="blob/1") for _ in range(2))
    assert len(one.plain) == 32
    assert one.plain != other.plain
    assert one.plain not in one.wrapped
    assert (one.key_id, one.version) == wrapped_by(one.wrapped) == (key.id, 1)
    assert unwrap(ctx.db, settings, one.wrapped, context="blob/1") == one.plain
    with pytest.raises(NotWrappedHere):
        unwrap(ctx.db, settings, one.wrapped, context="blob/2")


def test_every_altered_byte_is_found(ctx: Context, settings: Settings) -> None:
    wrapped = data_key(ctx.db, settings, made(ctx), context="x").wrapped
    for place in range(len(wrapped)):
        altered = wrapped[:place] + bytes([wrapped[place] ^ 1]) + wrapped[place + 1 :]
        with pytest.raises((NotWrappedHere, KeyGone)):
            unwrap(ctx.db, settings, altered, context="x")
    for short in (b"", b"\x01", b"\x01\xff", b"\x01\x00" + bytes(60), wrapped[:-1], b"\x01\x02\xff\xff" + bytes(60)):
        with pytest.raises((NotWrappedHere, KeyGone)):
            unwrap(ctx.db, settings, short, context="x")


def test_a_version_put_in_the_place_of_another_is_found(ctx: Context, settings: Settings) -> None:
    mine, theirs = made(ctx), made(ctx, name="another")
    wrapped = data_key(ctx.db, settings, mine, context="x").wrapped
    with transaction(ctx.db):
        material = ctx.db.get_one(KeyVersion, (theirs.id, 1)).material
        ctx.db.execute(update(KeyVersion).where(KeyVersion.key_id == mine.id).values(material=material))
    with pytest.raises(Exception, match="not what was written"):
        unwrap(ctx.db, settings, wrapped, context="x")


def test_a_disabled_key_is_of_no_use_until_it_is_enabled(ctx: Context, settings: Settings) -> None:
    key = made(ctx)
    kept = data_key(ctx.db, settings, key, context="x")
    run(ctx, key_disable, key.id)
    for use in (lambda: data_key(ctx.db, settings, key, context="x"), lambda: unwrap(ctx.db, settings, kept.wrapped, context="x")):
        with pytest.raises(KeyDisabled, match="a-key is disabled"):
            use()
    run(ctx, key_enable, key.id)
    assert unwrap(ctx.db, settings, kept.wrapped, context="x") == kept.plain
    with pytest.raises(StateConflict):
        run(ctx, key_enable, key.id)


def test_a_key_waits_before_it_is_deleted_and_then_nothing_can_be_read(ctx: Context, settings: Settings, worker: TestWorker, people: People) -> None:
    key = made(ctx)
    kept = data_key(ctx.db, settings, key, context="x")
    with pytest.raises(Conflict, match="ask for it with schedule-deletion"):
        run(ctx, key_delete, key.id)
    run(ctx, key_schedule_deletion, key.id, {"window_days": 7})
    with pytest.raises(KeyPendingDeletion):
        unwrap(ctx.db, settings, kept.wrapped, context="x")
    run(ctx, key_cancel_deletion, key.id)
    ctx.db.refresh(key)
    assert (key.state, key.deletion_date) == ("disabled", None)
    run(ctx, key_enable, key.id)
    assert unwrap(ctx.db, settings, kept.wrapped, context="x") == kept.plain
    run(ctx, key_schedule_deletion, key.id, {"window_days": 7})
    with transaction(ctx.db):
        ctx.db.execute(update(EncryptionKey).values(deletion_date=now() - timedelta(seconds=1)))
    tend_keys(TaskRun(people.context(None), worker.runner.engines))
    with pytest.raises(KeyGone):
        unwrap(ctx.db, settings, kept.wrapped, context="x")
    assert ctx.db.scalars(select(KeyVersion).where(KeyVersion.key_id == key.id)).all() == []
    assert held_by(ctx.db, key.id) == {}


def test_after_a_rotation_older_versions_go_on_to_be_read(ctx: Context, settings: Settings, worker: TestWorker) -> None:
    key = made(ctx, rotation_period_days=30)
    old = data_key(ctx.db, settings, key, context="x")
    job = run(ctx, key_rotate, key.id).job_id
    worker.drain()
    assert job is not None
    assert worker.job(job).state == "succeeded"
    ctx.db.refresh(key)
    assert (key.current_version, key.state) == (2, "enabled")
    assert key.last_rotated_at is not None
    assert key.next_rotation_at == key.last_rotated_at + timedelta(days=30)
    assert unwrap(ctx.db, settings, old.wrapped, context="x") == old.plain
    again = rewrap(ctx.db, settings, old.wrapped, context="x")
    assert (again.version, again.plain) == (2, old.plain)
    assert unwrap(ctx.db, settings, again.wrapped, context="x") == old.plain
    assert data_key(ctx.db, settings, key, context="x").version == 2


def test_keys_are_rotated_by_themselves_when_their_period_is_over(ctx: Context, worker: TestWorker, people: People) -> None:
    due, never = made(ctx), made(ctx, name="never", rotation_enabled=False)
    assert never.next_rotation_at is None
    with transaction(ctx.db):
        ctx.db.execute(update(EncryptionKey).where(EncryptionKey.id == due.id).values(next_rotation_at=now()))
    for _ in range(2):
        tend_keys(TaskRun(people.context(None), worker.runner.engines))
        worker.drain()
    versions = ctx.db.execute(select(KeyVersion.key_id, KeyVersion.number, KeyVersion.origin)).all()
    assert sorted((row.key_id, row.number, row.origin) for row in versions) == sorted(
        [(due.id, 1, "created"), (due.id, 2, "automatic"), (never.id, 1, "created")]
    )
    run(ctx, key_update, never.id, {"rotation_enabled": True, "rotation_period_days": 10})
    ctx.db.refresh(never)
    assert never.next_rotation_at == never.created_at + timedelta(days=10)


def test_the_default_key_is_made_once_however_many_need_it_first(ctx: Context, people: People) -> None:
    contexts = [people.context(people.user("developer")) for _ in range(4)]
    found = race([lambda each=each: default_key_ensure(each, ctx.project_id or "").id for each in contexts])
    assert len(set(found)) == 1, found
    key = default_key(ctx.db, ctx.project_id or "")
    assert key is not None
    assert key.is_default
    assert held_by(ctx.db, key.id)["encryption_keys"] == 0


def test_whoever_may_use_a_key_may_not_manage_it(ctx: Context, people: People) -> None:
    key = made(ctx)
    developer, viewer = (people.context(people.user(role)) for role in ("developer", "viewer"))
    key_authorize(developer, developer.db.get_one(EncryptionKey, key.id))
    with pytest.raises(Forbidden):
        key_authorize(viewer, viewer.db.get_one(EncryptionKey, key.id))
    for op in (key_disable, key_rotate, key_schedule_deletion):
        with pytest.raises(Forbidden):
            run(developer, op, key.id)


def test_uses_are_counted_by_the_hour(ctx: Context, people: People) -> None:
    key, other = made(ctx), people.context(people.user("developer"))
    for number in range(5):
        note_use(ctx, key.id, "encrypt", resource_id=f"r-{number}")
    note_use(other, key.id, "decrypt", outcome="denied")
    USAGE_LOG.flush()
    note_use(ctx, key.id, "encrypt", resource_id="r-9")
    USAGE_LOG.flush()
    rows = ctx.db.scalars(select(KeyUsage).order_by(KeyUsage.operation)).all()
    # Around a full hour there may be two.
    assert sum(row.count for row in rows if row.operation == "encrypt") == 6
    assert rows[-1].resource_id == "r-9"
    assert [(row.actor, row.outcome, row.count) for row in rows if row.operation == "decrypt"] == [(other.principal.username, "denied", 1)]
    ctx.db.refresh(key)
    assert key.operations_count == 7


def test_nothing_secret_is_told(ctx: Context, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = made(ctx)
    found = data_key(ctx.db, settings, key, context="x")
    version = ctx.db.get_one(KeyVersion, (key.id, 1))
    with pytest.raises(NotWrappedHere) as refused:
        unwrap(replace(ctx).db, settings, found.wrapped, context="y")
    entries = [str(vars(entry)) for entry in ctx.db.scalars(select(AuditEntry))]
    told = "".join([repr(found), repr(version), repr(refused.value), caplog.text, *entries])
    for secret in (found.plain, version.material):
        assert secret.hex() not in told
        assert repr(secret)[2:-1] not in told


def test_the_master_key_is_replaced_by_a_command(
    ctx: Context, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
    ctx.settings = settings.model_copy(update={"encryption_master_key": SecretStr(old)})
    kept = [data_key(ctx.db, ctx.settings, made(ctx, name=f"key-{number}"), context="x") for number in range(3)]
    for name, value in (("DATA_DIR", settings.data_dir), ("DATABASE_URL", settings.database()), ("ENCRYPTION_MASTER_KEY", new)):
        monkeypatch.setenv(name, str(value))
    assert main(["keys", "rewrap"]) == 1
    assert "is not among those" in capsys.readouterr().err
    monkeypatch.setenv("ENCRYPTION_MASTER_KEY", f"{new},{old}")
    assert main(["keys", "rewrap"]) == 0
    assert capsys.readouterr().out.startswith("3 versions of encryption keys were wrapped again")
    assert main(["keys", "rewrap"]) == 0
    assert capsys.readouterr().out.startswith("0 versions")
    alone = settings.model_copy(update={"encryption_master_key": SecretStr(new)})
    ctx.db.rollback()
    assert [unwrap(ctx.db, alone, each.wrapped, context="x") for each in kept] == [each.plain for each in kept]


def test_a_master_key_that_is_gone_is_told_and_no_second_one_made(ctx: Context, settings: Settings) -> None:
    wrapped = data_key(ctx.db, settings, made(ctx), context="x").wrapped
    (settings.data_dir / KEY_FILE).unlink()
    for call in (lambda: unwrap(ctx.db, settings, wrapped, context="x"), lambda: made(ctx, name="another")):
        with pytest.raises(MasterKeyMissing, match="is not there"):
            call()
    assert not (settings.data_dir / KEY_FILE).exists()


def test_under_another_master_key_no_encryption_key_is_made_and_ready_says_so(
    ctx: Context, settings: Settings, app: Flask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        ready = app.test_client().get("/ready").get_json()
        return str(ready["checks"]["capabilities"].get("encryption_keys", {}).get("reason", ""))

    key = made(ctx)
    assert said() == ""
    path = settings.data_dir / KEY_FILE
    right = path.read_text()
    path.write_text(base64.b64encode(os.urandom(32)).decode())
    for call in (lambda: made(ctx, name="another"), lambda: run(ctx, key_rotate, key.id), lambda: default_key_ensure(ctx, ctx.project_id or "")):
        with pytest.raises(MasterKeyMissing, match="an operator has added that one"):
            call()
    assert len(ctx.db.scalars(select(KeyVersion)).all()) == 1
    assert "an operator has added that one" in said()
    for name, value in (("DATA_DIR", settings.data_dir), ("DATABASE_URL", settings.database())):
        monkeypatch.setenv(name, str(value))
    assert main(["init"]) == 0
    assert "Warning: The encryption keys in the database were wrapped by" in capsys.readouterr().err
    path.write_text(f"{path.read_text()}\n{right}")
    assert said() == ""
    made(ctx, name="another")
