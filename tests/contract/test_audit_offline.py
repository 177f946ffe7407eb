"""Files of the audit log are verified without the database: what holds, what does not, and what only a signature can tell."""

import base64
import gzip
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from portal.cli import main
from portal.kernel.audit import canonical
from portal.kernel.audit_archives import directory
from portal.kernel.audit_export import lines
from portal.kernel.audit_keys import Signer, signer, trust_in, trust_of
from portal.kernel.audit_lines import FIELDS, TIMESTAMP, hash_of
from portal.kernel.audit_offline import FileVerdict, signed_checkpoints, verify_file
from portal.kernel.audit_query import AuditQuery
from portal.kernel.audit_watch import audit_archive
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.settings import Settings
from tests.support.audited import signed_log
from tests.support.people import People

Change = Callable[[list[dict[str, Any]]], object]


@pytest.fixture
def log(people: People) -> Context:
    """Twelve entries with checkpoints at 4 and 8."""
    return signed_log(people)


@pytest.fixture
def files(log: Context, tmp_path: Path) -> tuple[Path, Path]:
    """An export of everything, newest first, and the checkpoints."""
    export, signed = tmp_path / "all.jsonl", tmp_path / "checkpoints.jsonl"
    export.write_text("".join(lines(log, AuditQuery(), "jsonl")))
    signed.write_text("".join(json.dumps(each) + "\n" for each in signed_checkpoints(log.db)))
    return export, signed


def changed(path: Path, change: Change) -> Path:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    change(entries)
    path.write_text("".join(json.dumps(each) + "\n" for each in entries))
    return path


def rehash(entries: list[dict[str, Any]]) -> None:
    """As somebody does who knows how the chain is made."""
    previous = entries[-1]["previous_hash"]
    for each in reversed(entries):
        each["previous_hash"] = previous
        line = [each[name] for name in FIELDS]
        line[TIMESTAMP] = each["timestamp"].removesuffix("+00:00")
        each["entry_hash"] = previous = hash_of([*line, ""], canonical(each["details"]))


def edited(entries: list[dict[str, Any]]) -> None:
    entries[6]["username"] = "innocent"


def rewritten(entries: list[dict[str, Any]]) -> None:
    edited(entries)
    rehash(entries)


def swapped(entries: list[dict[str, Any]]) -> None:
    entries[6], entries[7] = entries[7], entries[6]


def spliced(entries: list[dict[str, Any]]) -> None:
    later = entries[:6]
    later[-1]["previous_hash"] = "0" * 64
    rehash(later)
    entries[:6] = later


WRONG: dict[str, tuple[Change, int, str]] = {
    "edited": (edited, 6, "content was changed"), "rewritten": (rewritten, 8, "was rewritten"), "re-ordered": (swapped, 6, "out of order"),
    "another end": (spliced, 8, "was rewritten"), "twice": (lambda found: found.insert(3, found[3]), 9, "out of order"),
}  # fmt: skip


@pytest.mark.parametrize("order", ["newest first", "oldest first"])
def test_what_is_whole_holds_in_either_order(files: tuple[Path, Path], settings: Settings, order: str) -> None:
    export, signed = files
    if order == "oldest first":
        changed(export, lambda found: found.reverse())
    assert verify_file(export, trust_of(settings), signed) == FileVerdict(12, 1, 12, 0, 8, 2, 8)
    assert verify_file(export, trust_of(settings)) == FileVerdict(12, 1, 12)


def test_some_entries_of_the_log_are_as_they_were_where_they_lead_to_a_signed_one(files: tuple[Path, Path], settings: Settings) -> None:
    export, signed = files
    changed(export, lambda found: found.pop(9))
    # Entries 1 and 2 lead to 3, which is not there; 4 is signed itself, and 5 to 8 lead to 8.
    assert verify_file(export, trust_of(settings), signed) == FileVerdict(11, 1, 12, 1, 5, 2, 8)


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_hold_is_named(files: tuple[Path, Path], settings: Settings, name: str) -> None:
    change, seq, said = WRONG[name]
    found = verify_file(changed(files[0], change), trust_of(settings), files[1])
    assert (found.broken_seq, said in found.problem) == (seq, True), found


def test_only_keys_that_are_trusted_count(files: tuple[Path, Path], settings: Settings) -> None:
    export, signed = files
    forger = Signer(Ed25519PrivateKey.generate())
    assert verify_file(export, trust_in([signer(settings).public]), signed).covered == 8
    assert "not one that you trust" in verify_file(export, trust_in([forger.public]), signed).problem
    first = json.loads(signed.read_text().splitlines()[0])
    content = {name: value for name, value in first.items() if name not in {"signature", "public_key"}} | {"key_id": forger.key_id, "hash": "0" * 64}
    signed.write_text(json.dumps({**content, "public_key": forger.public, "signature": forger.sign(content)}))
    assert "not one that you trust" in verify_file(export, trust_of(settings), signed).problem


def test_an_archive_is_verified_by_the_manifest_beside_it(log: Context, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    log.settings = settings.model_copy(update={"audit_retention_days": 1})
    with monkeypatch.context() as patched:
        patched.setattr("portal.kernel.audit_archives.now", lambda: now() + timedelta(days=2))
        audit_archive(log)
    (path,) = directory(settings).glob("*.gz")
    assert verify_file(path, trust_of(settings)) == FileVerdict(8, 1, 8, 0, 8, 1, 8)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"system", b"nobody")))
    assert "manifest" in verify_file(path, trust_of(settings)).problem


def test_the_command_says_it(
    files: tuple[Path, Path], settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export, signed = files
    monkeypatch.setenv("DATA_DIR", str(export.parent / "elsewhere"))
    monkeypatch.setenv("DATABASE_URL", "sqlite:////nowhere/at/all.db")
    key = ["--key", signer(settings).public]
    assert main(["audit", "verify", "--file", str(export), "--checkpoints", str(signed), *key]) == 0
    assert "holds: 12 entries, 1 to 12, without a gap; 8 of them are covered by 2 signatures." in capsys.readouterr().out
    changed(export, lambda found: found.__delitem__(slice(0, 6)))
    assert main(["audit", "verify", "--file", str(export), "--checkpoints", str(signed), *key]) == 0
    assert "it ends before entry 8, which is signed, too" in capsys.readouterr().out
    changed(export, lambda found: found[1].update(username="innocent"))
    assert main(["audit", "verify", "--file", str(export)]) == 1
    assert "entry 5 content was changed" in capsys.readouterr().err
    assert main(["audit", "verify", "--file", str(export), "--key", base64.b64encode(b"short").decode()]) == 2
    assert main(["audit", "verify", "--file", "/nowhere.jsonl"]) == 1
