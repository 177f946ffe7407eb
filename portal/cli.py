"""The command line: `portal serve` runs everything, the other commands run or ask for one part."""

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url, select
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from portal.settings import ObjectsDriver, Settings, SettingsError

Command = Callable[[Settings, argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    from portal.identity.providers import providers_load

    try:
        settings = Settings.load()
        providers_load(settings.sso_config)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    command: Command = args.command
    try:
        return command(settings, args)
    except (OperationalError, ProgrammingError) as error:
        said = " ".join(str(error.orig).split())
        if "no such table" in said or "does not exist" in said:
            print("The database has no tables of this portal, or older ones. Make them with: portal migrate", file=sys.stderr)
        else:
            print(f"The database of {_database_named(settings)} does not answer: {said}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None or not Path(os.fsdecode(error.filename)).is_relative_to(settings.data_dir):
            raise
        print(f"DATA_DIR={str(settings.data_dir)!r} cannot be used: {error.strerror or error}", file=sys.stderr)
        return 1


def _database_named(settings: Settings) -> str:
    """The settings that name the database, with where it is; no user, password or option of it."""
    url = make_url(settings.database())
    if url.get_backend_name() == "sqlite":
        return "DATABASE_URL" if settings.database_url else "DATA_DIR"
    named = "DATABASE_URL" if settings.database_url else "DB_HOST, DB_PORT and DB_NAME"
    return f"{named} ({url.host}:{url.port or 5432}/{url.database})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="portal", description="Atonix Portal, a self-hosted cloud console.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    add("serve", _serve, "Migrate, initialise and run web, worker and scheduler until Ctrl-C.")
    add("web", _web, "Run the web server alone.")
    add("s3", _s3, "Run the S3 gateway alone.")
    add("worker", _worker, "Run a worker alone.")
    add("scheduler", _scheduler, "Run a scheduler alone.")
    add("migrate", _migrate, "Bring the database to this version.").add_argument(
        "--check", action="store_true", help="Only say whether models and migrations agree."
    )
    add("init", _init, "Make the default project, flavors, images and the first administrator where they are missing.")
    add("settings", _settings, "Print every setting with its value and source; secrets are masked.")
    add("health", _health, "Ask the running web server whether it is alive.")
    add("docs", _docs, "Write the generated pages of docs/.")
    audit = add("audit", _audit, "Verify the audit log or a file of it, list its signed checkpoints, or sign it with a fresh key from now on.")
    audit.add_argument("what", choices=["verify", "checkpoints", "rotate-key"])
    audit.add_argument("--file", type=Path, help="Verify this archive or export (JSON lines) instead, without the database.")
    audit.add_argument("--checkpoints", type=Path, help="With --file: what `portal audit checkpoints` wrote.")
    audit.add_argument("--key", action="append", default=[], help="With --file: a public key in base64 that you trust; else the host's own.")
    audit.add_argument("--since-checkpoint", action="store_true", help="Begin at the last good checkpoint instead of at the first entry.")
    audit.add_argument("--archives", action="store_true", help="Read the files of archived entries as well.")
    keys = add("keys", _keys, "Wrap encryption keys again by the first master key, so that the others can be put away.")
    keys.add_argument("what", choices=["rewrap"])
    user = add("user", _user, "Manage users on the command line.")
    user.add_argument("what", choices=["list", "set-password", "unlock", "reset-factors", "detach-policies", "s3-key"])
    user.add_argument("username", nargs="?", default="")
    return parser


@contextmanager
def _session(settings: Settings) -> Iterator[Session]:
    from portal.kernel.db import open_database

    sessions = open_database(settings)
    try:
        with sessions() as session:
            yield session
    finally:
        sessions.kw["bind"].dispose()


def _prepare(settings: Settings) -> None:
    from portal.bootstrap import initialise, migrate
    from portal.security.key_store import master_problem

    for sentence in settings.weaknesses():
        print(f"Warning: {sentence}", file=sys.stderr, flush=True)
    _keep_to_oneself(settings)
    with _session(settings) as session:
        migrate(session.get_bind().engine)
        made = initialise(session, settings)
        if problem := master_problem(session, settings):
            print(f"Warning: {problem}", file=sys.stderr, flush=True)
    if made is not None:
        print(f"First administrator: user {made.username}, e-mail {made.email}", flush=True)
        if made.generated:
            print(f"Password (shown only now): {made.password}", flush=True)
            print("Sign in to the console with it and choose your own.", flush=True)


def _keep_to_oneself(settings: Settings) -> None:
    """Guests' processes, which run as another user, may pass through DATA_DIR; nobody else sees what is in it or reads the database."""
    if not settings.data_dir.exists():
        settings.data_dir.mkdir(parents=True)
        settings.data_dir.chmod(0o711)
    url = make_url(settings.database())
    if url.get_backend_name() == "sqlite" and url.database:
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)


def _serve(settings: Settings, _args: argparse.Namespace) -> int:
    from portal.worker.supervisor import run_supervisor

    _prepare(settings)
    return run_supervisor(settings)


def _web(settings: Settings, _args: argparse.Namespace) -> int:
    from portal.http.server import command_line

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    command = command_line(settings)
    os.execv(command[0], command)  # noqa: S606 - a list of arguments, no shell


def _s3(settings: Settings, _args: argparse.Namespace) -> int:
    from portal.s3.server import command_line

    if settings.engine_objects is ObjectsDriver.LOCAL:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        command = command_line(settings)
        os.execv(command[0], command)  # noqa: S606 - a list of arguments, no shell
    print(f"The portal has no S3 interface of its own: its objects are at {settings.s3_engine_endpoint} (ENGINE_OBJECTS).", file=sys.stderr)
    return 1


def _worker(settings: Settings, _args: argparse.Namespace) -> int:
    from portal.worker.loop import run_worker

    return run_worker(settings)


def _scheduler(settings: Settings, _args: argparse.Namespace) -> int:
    from portal.worker.scheduler import run_scheduler

    return run_scheduler(settings)


def _migrate(settings: Settings, args: argparse.Namespace) -> int:
    from alembic import command
    from alembic.util import CommandError

    from portal.bootstrap import alembic_config, migrate

    with _session(settings) as session:
        engine = session.get_bind().engine
        migrate(engine)
        if args.check:
            try:
                command.check(alembic_config(engine))
            except CommandError as error:
                print(error, file=sys.stderr)
                return 1
    return 0


def _init(settings: Settings, _args: argparse.Namespace) -> int:
    _prepare(settings)
    return 0


def _settings(settings: Settings, _args: argparse.Namespace) -> int:
    for name, value, source, text in settings.rows():
        print(f"{name}={value}  [{source}]  {text}")
    return 0


def _health(settings: Settings, _args: argparse.Namespace) -> int:
    from http.client import HTTPException

    from portal.http.local import ask

    try:
        print(ask(settings, "/health", timeout_s=4).decode())
    except (OSError, HTTPException) as error:
        print(f"The web server does not answer: {error}", file=sys.stderr)
        return 1
    return 0


def _docs(_settings: Settings, _args: argparse.Namespace) -> int:
    from portal.reference import write_all

    for path in write_all():
        print(path)
    return 0


def _audit(settings: Settings, args: argparse.Namespace) -> int:
    from portal.kernel.audit_archives import directory
    from portal.kernel.audit_checkpoints import newest_checkpoint
    from portal.kernel.audit_keys import key_rotate, trust_of
    from portal.kernel.audit_offline import signed_checkpoints
    from portal.kernel.audit_verify import Since, verify

    if args.what == "rotate-key":
        if settings.audit_signing_key.get_secret_value():
            print("AUDIT_SIGNING_KEY is set: put the new key before the public keys of earlier times there.", file=sys.stderr)
            return 1
        print(f"Checkpoints are signed by {key_rotate(settings)} from now on.")
        return 0
    if args.what == "checkpoints":
        with _session(settings) as session:
            for each in signed_checkpoints(session):
                print(json.dumps(each))
        return 0
    if args.file is not None:
        return _audit_file(settings, args)
    trust, files = trust_of(settings), directory(settings) if args.archives else None
    with _session(settings) as session:
        verdict = verify(session, trust, since=Since.CHECKPOINT if args.since_checkpoint else Since.BEGINNING, files=files)
        newest = newest_checkpoint(session)
        unsigned = verdict.to_seq - (newest.seq if newest is not None else 0)
    if verdict.broken_seq is not None:
        which = f"{verdict.broken_seq} ({verdict.broken_id})" if verdict.broken_id else str(verdict.broken_seq)
        print(f"The audit log is broken at entry {which}: {verdict.problem}. {verdict.entries} entries before it hold.", file=sys.stderr)
        return 1
    signatures = f", {verdict.checkpoints} signed checkpoints" if trust.keys else "; this host has no audit key, so no signature was checked"
    since = f" after entry {verdict.from_seq - 1}" if verdict.from_seq > 1 else ""
    tail = f" The newest {unsigned} are not signed yet: that some of them are gone would not be seen." if unsigned > 0 else ""
    print(f"The audit log holds: {verdict.entries} entries{since}{signatures}.{tail}")
    return 0


def _audit_file(settings: Settings, args: argparse.Namespace) -> int:
    from portal.kernel.audit_keys import trust_in, trust_of
    from portal.kernel.audit_offline import verify_file

    try:
        trust = trust_in(args.key) if args.key else trust_of(settings)
    except ValueError:
        print("--key must be a public key: 32 bytes in base64.", file=sys.stderr)
        return 2
    found = verify_file(args.file, trust, args.checkpoints)
    if found.problem:
        where = f"entry {found.broken_seq} {found.problem}" if found.broken_seq is not None else found.problem
        print(f"{args.file} does not hold: {where}. {found.entries} entries before it hold.", file=sys.stderr)
        return 1
    gaps = f", with {found.gaps} gaps between them" if found.gaps else ", without a gap"
    covered = f"{found.covered} of them are covered by {found.signatures} signatures" if found.signatures else "no signature was checked"
    if found.signed_to > found.last_seq:
        covered += f"; it ends before entry {found.signed_to}, which is signed, too"
    print(f"{args.file} holds: {found.entries} entries, {found.first_seq} to {found.last_seq}{gaps}; {covered}.")
    return 0


def _keys(settings: Settings, _args: argparse.Namespace) -> int:
    from portal.kernel.errors import PortalError
    from portal.security.key_rewrap import rewrap_versions
    from portal.security.master_keys import master_keys

    with _session(settings) as session:
        try:
            first, count = master_keys(settings).first, rewrap_versions(session, settings)
        except PortalError as error:
            print(error.message, file=sys.stderr)
            return 1
    print(f"{count} versions of encryption keys were wrapped again; all are wrapped by the master key {first} now.")
    return 0


def _user(settings: Settings, args: argparse.Namespace) -> int:
    from portal.engines.registry import open_objects
    from portal.identity.admin import detach_policies, reset_factors, s3_key, set_password, unlock
    from portal.identity.models import PERSON, User
    from portal.kernel.errors import PortalError
    from portal.storage.engine_tending import refuse_keys

    with _session(settings) as session:
        if args.what == "list":
            for user in session.scalars(select(User).where(User.kind == PERSON).order_by(User.username)):
                print(f"{user.username}\t{user.email}\t{user.platform_role or 'member'}\t{'active' if user.is_active else 'disabled'}")
            return 0
        try:
            if args.what == "unlock":
                unlock(session, settings, args.username)
            elif args.what == "detach-policies":
                detach_policies(session, settings, args.username)
            elif args.what == "reset-factors":
                reset_factors(session, settings, args.username)
            elif args.what == "s3-key":
                engine = open_objects(settings)
                refuse_keys(engine)
                key_id, secret = s3_key(session, settings, args.username)
                print(f"Access key: {key_id}")
                print(f"Secret key (shown only now): {secret}")
                if engine is not None:
                    print(f"It works at {settings.s3_engine_endpoint} a few seconds from now.")
            else:
                password = getpass.getpass("New password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
                set_password(session, settings, args.username, password)
        except PortalError as error:
            print(error.message, file=sys.stderr)
            return 1
    return 0
