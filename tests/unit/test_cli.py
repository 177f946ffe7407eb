"""The command line, as an operator types it."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal import cli
from portal.cli import main
from portal.identity.models import S3AccessKey, User
from portal.identity.passwords import matches
from portal.identity.s3_keys import s3_key_holder
from portal.kernel.audit import AuditEntry, Subject, record
from portal.kernel.audit_checkpoints import AuditCheckpoint
from portal.kernel.audit_watch import audit_checkpoint
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.settings import Settings
from tests.support.databases import ADMIN_PASSWORD
from tests.support.processes import environment
from tests.support.servers import free_port


@pytest.fixture
def portal(settings: Settings, database: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`portal("user", "list")`: run a command on the test's database; its exit status."""
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    return lambda *args: main(args)


def test_a_wrong_setting_stops_the_start_with_one_line(
    portal: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORTAL_PORT", "eighty")
    assert portal("settings") == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.splitlines() == [out.err.strip()]
    assert out.err.startswith("PORTAL_PORT='eighty' is not accepted: ")


@pytest.mark.parametrize("args", [(), ("fly",), ("user", "delete"), ("audit", "forge")])
def test_an_unknown_command_is_explained(portal: Callable[..., int], capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        portal(*args)
    assert ended.value.code == 2
    assert "usage: portal" in capsys.readouterr().err


def test_settings_are_printed_without_secrets(portal: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert portal("settings") == 0
    out = capsys.readouterr().out
    assert ADMIN_PASSWORD not in out
    assert "ADMIN_PASSWORD=********  [environment]" in out
    assert len(out.splitlines()) == len(Settings.model_fields)


def test_init_on_a_database_that_is_there_says_nothing(portal: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert portal("init") == 0
    assert portal("migrate", "--check") == 0
    assert capsys.readouterr().out == ""


def test_init_on_a_fresh_machine_prints_the_password_once(
    portal: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/fresh.db")
    monkeypatch.setenv("ADMIN_PASSWORD", "")
    assert portal("init") == 0
    first = capsys.readouterr().out
    assert "First administrator: user admin" in first
    assert "Password (shown only now): " in first
    assert portal("init") == 0
    assert capsys.readouterr().out == ""


def test_a_drift_of_models_is_told(portal: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from sqlalchemy import Column, Integer, Table

    from portal.kernel.db import Base

    extra = Table("forgotten", Base.metadata, Column("id", Integer, primary_key=True))
    try:
        assert portal("migrate", "--check") == 1
    finally:
        Base.metadata.remove(extra)
    assert "forgotten" in capsys.readouterr().err


def test_users_are_listed_unlocked_and_given_passwords(
    portal: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database: sessionmaker[Session]
) -> None:
    assert portal("user", "list") == 0
    assert capsys.readouterr().out.split("\t")[0] == "admin"
    with database() as session, transaction(session):
        session.execute(update(User).values(locked_until=now(), failed_sign_ins=9))
    assert portal("user", "unlock", "admin") == 0
    assert portal("user", "reset-factors", "admin") == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("a fresh passphrase here\n"))
    assert portal("user", "set-password", "admin") == 0
    with database() as session:
        admin = session.scalars(select(User)).one()
        assert (admin.failed_sign_ins, matches(admin.password_hash, "a fresh passphrase here")) == (0, True)
        assert [entry.action for entry in session.scalars(select(AuditEntry).order_by(AuditEntry.seq))] == [
            "identity.user.unlock",
            "identity.mfa.reset",
            "identity.user.set_password",
        ]
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("short\n"))
    assert portal("user", "set-password", "admin") == 1
    assert "at least 12 characters" in capsys.readouterr().err
    for what in ("unlock", "set-password", "reset-factors", "detach-policies"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("a fresh passphrase here\n"))
        assert portal("user", what, "nobody") == 1
        assert "no user 'nobody'" in capsys.readouterr().err


def test_an_access_key_is_printed_once(
    portal: Callable[..., int], capsys: pytest.CaptureFixture[str], database: sessionmaker[Session], settings: Settings
) -> None:
    with database() as session:
        email = session.scalars(select(User.email)).one()
    assert portal("user", "s3-key", email) == 0
    key_id, secret = (line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines())
    with database() as session:
        holder = s3_key_holder(session, settings, key_id)
        assert holder is not None
        assert (holder.secret, holder.principal.username, len(key_id)) == (secret, "admin", 20)
        assert secret not in session.scalars(select(S3AccessKey.sealed_secret)).one()
    assert portal("user", "s3-key", "nobody") == 1
    assert "no user 'nobody'" in capsys.readouterr().err


def test_at_a_terminal_the_password_is_not_echoed(
    portal: Callable[..., int], monkeypatch: pytest.MonkeyPatch, database: sessionmaker[Session]
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(cli.getpass, "getpass", lambda _prompt: "typed in the dark 1")
    assert portal("user", "set-password", "admin") == 0
    with database() as session:
        assert matches(session.scalars(select(User)).one().password_hash, "typed in the dark 1")


def test_the_audit_log_is_verified(
    portal: Callable[..., int], ctx: Context, capsys: pytest.CaptureFixture[str], database: sessionmaker[Session]
) -> None:
    for _ in range(3):
        with transaction(ctx.db):
            record(ctx, "test.thing.do", Subject("test.thing"))
    assert portal("audit", "verify") == 0
    assert "holds: 3 entries" in capsys.readouterr().out
    with database() as session, transaction(session):
        session.execute(update(AuditEntry).where(AuditEntry.seq == 2).values(username="innocent"))
    assert portal("audit", "verify") == 1
    said = capsys.readouterr().err
    assert "broken at entry 2 (audit-" in said
    assert "): content was changed. 1 entries before it hold." in said


def test_the_audit_log_is_verified_from_a_checkpoint_and_signed_with_a_fresh_key(
    portal: Callable[..., int], ctx: Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        with transaction(ctx.db):
            record(ctx, "test.thing.do", Subject("test.thing"))

    write()
    assert portal("audit", "verify") == 0
    assert "no signature was checked" in capsys.readouterr().out
    audit_checkpoint(ctx)
    assert portal("audit", "rotate-key") == 0
    write()
    assert portal("audit", "verify", "--since-checkpoint") == 0
    said = capsys.readouterr().out
    assert "holds: 1 entries after entry 1, 1 signed checkpoints" in said
    assert "The newest 1 are not signed yet" in said
    with transaction(ctx.db):
        ctx.db.execute(delete(AuditCheckpoint))
    assert portal("audit", "verify", "--since-checkpoint") == 1
    assert "checkpoint 1, which this host keeps outside the database, is not in it" in capsys.readouterr().err
    monkeypatch.setenv("AUDIT_SIGNING_KEY", "A" * 43 + "=")
    assert portal("audit", "rotate-key") == 1
    assert "AUDIT_SIGNING_KEY is set" in capsys.readouterr().err
    monkeypatch.setenv("AUDIT_SIGNING_KEY", "too short")
    assert portal("audit", "verify") == 2
    assert "32 bytes in base64" in capsys.readouterr().err


def test_health_asks_the_running_server(portal: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "healthy"}')

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    port = free_port()
    monkeypatch.setenv("PORTAL_PORT", str(port))
    monkeypatch.setenv("PORTAL_HOST", "0.0.0.0")  # noqa: S104 - asked on loopback
    assert portal("health") == 1
    assert "does not answer" in capsys.readouterr().err
    server = HTTPServer(("127.0.0.1", port), Healthy)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    assert portal("health") == 0
    thread.join()
    server.server_close()
    assert "healthy" in capsys.readouterr().out


def test_a_database_that_is_away_is_one_line(portal: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    monkeypatch.setenv("DATABASE_URL", f"postgresql+psycopg://portal:hunter2@127.0.0.1:{port}/portal?sslpassword=hunter2")
    for args in (("init",), ("serve",), ("migrate",), ("audit", "verify"), ("user", "list")):
        assert portal(*args) == 1
        out = capsys.readouterr()
        assert out.err.startswith(f"The database of DATABASE_URL (127.0.0.1:{port}/portal) does not answer: ")
        assert len(out.err.splitlines()) == 1
        assert "hunter2" not in out.err


def test_commands_start_what_they_say(portal: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    from portal.worker import loop, scheduler, supervisor

    ran: list[str] = []
    for module, name in ((loop, "run_worker"), (scheduler, "run_scheduler"), (supervisor, "run_supervisor")):
        monkeypatch.setattr(module, name, lambda _settings, name=name: ran.append(name) or 0)
    monkeypatch.setattr(cli.os, "execv", lambda path, argv: ran.append(argv[-1]))
    for command in ("worker", "scheduler", "serve", "web"):
        portal(command)
    assert ran == ["run_worker", "run_scheduler", "run_supervisor", "portal.http.wsgi:app"]


def test_a_directory_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("DATA_DIR", str(wrong))
        assert main(["init"]) != 0
        out = capsys.readouterr()
        assert out.err.startswith(f"DATA_DIR='{wrong}' is not accepted: a directory")
        assert len(out.err.strip().splitlines()) == 1


def test_nobody_else_reads_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "new"))
    monkeypatch.setenv("ADMIN_PASSWORD", "short")
    monkeypatch.setenv("SECRET_KEY", "x")
    assert main(["audit", "verify"]) == 1
    assert "portal migrate" in capsys.readouterr().err
    assert main(["init"]) == 0
    said = capsys.readouterr().err
    assert "Warning: SECRET_KEY has fewer than 16 characters" in said
    assert "Warning: ADMIN_PASSWORD has fewer than 12 characters" in said
    assert "short" not in said
    assert (tmp_path / "new" / "portal.db").stat().st_mode & 0o777 == 0o600


def test_an_external_engine_has_the_s3_interface_itself(
    portal: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINE_OBJECTS", "s3")
    monkeypatch.setenv("S3_ENGINE_ENDPOINT", "https://s3.example.org")
    monkeypatch.setenv("S3_ENGINE_ADMIN", "none")
    assert portal("s3") == 1
    assert "https://s3.example.org" in capsys.readouterr().err
    assert not Settings.load(s3_port=9000).has_gateway()
    # Nobody has keys where the portal cannot make users.
    assert portal("user", "s3-key", "admin") == 1
    assert "cannot make access keys" in capsys.readouterr().err
