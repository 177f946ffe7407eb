"""Master keys: where they come from, what is refused, and how one takes the place of another."""

import base64
import os
from pathlib import Path

import pytest

from portal.security.master_keys import KEY_FILE, MasterKeyMissing, master_keys
from tests.support.databases import settings_for


def fresh() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def test_one_is_made_only_while_nothing_is_wrapped(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with pytest.raises(MasterKeyMissing, match="is not there"):
        master_keys(settings)
    made = master_keys(settings, may_make=True)
    assert master_keys(settings, may_make=True).first == master_keys(settings).first == made.first
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    assert not any(key.hex() in repr(made) or str(key) in repr(made) for key in made.keys.values())


def test_the_first_wraps_and_all_unwrap(tmp_path: Path) -> None:
    old, new = fresh(), fresh()
    before = master_keys(settings_for(tmp_path, encryption_master_key=old))
    wrapped = before.wrap(b"plain", b"about")
    both = master_keys(settings_for(tmp_path, encryption_master_key=f"{new}, {old}"))
    assert both.first != before.first
    assert both.unwrap(before.first, wrapped, b"about") == b"plain"
    with pytest.raises(MasterKeyMissing, match="not what was written"):
        both.unwrap(before.first, wrapped, b"about something else")
    alone = master_keys(settings_for(tmp_path, encryption_master_key=new))
    with pytest.raises(MasterKeyMissing, match=f"{before.first} that wrapped"):
        alone.unwrap(before.first, wrapped, b"about")


def test_a_file_that_is_named_is_never_made(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    settings = settings_for(tmp_path, encryption_master_key_file=str(path))
    with pytest.raises(MasterKeyMissing):
        master_keys(settings, may_make=True)
    path.write_text(f"{fresh()}\n\n{fresh()}\n")
    assert len(master_keys(settings).keys) == 2
    for wrong in ("", "\n", "not base64!", base64.b64encode(bytes(31)).decode()):
        path.write_text(wrong)
        with pytest.raises(MasterKeyMissing, match="An operator has to"):
            master_keys(settings)
