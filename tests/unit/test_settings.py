"""Settings: a wrong one stops the start with one line, a right one is shown without secrets."""

import re
import stat
import threading
from pathlib import Path

import pytest

from portal.settings import ROOT, Settings, SettingsError
from tests.support.racing import race


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        for variant in (name, name.upper()):
            monkeypatch.delenv(variant, raising=False)


WRONG = [
    ("PORTAL_PORT", "http", "integer"), ("PORTAL_PORT", "65536", "65535"), ("PORTAL_PORT", "-1", "0"), ("PORTAL_PORT", "80.5", "integer"), ("METRICS_PORT", "x", "integer"),
    ("LOG_LEVEL", "loud", "debug, info"), ("ENGINE_COMPUTE", "vmware", "'local', 'fake' or 'none'"), ("QEMU_ACCEL", "fast", "'auto', 'kvm' or 'tcg'"),
    ("DATABASE_URL", "mysql://h/db", "postgresql"), ("DATABASE_URL", "portal.db", "sqlite"), ("QUEUE_URL", "kafka://h", "amqp"), ("CPU_OVERCOMMIT", "0.5", "1"),
    ("CPU_OVERCOMMIT", "nan", "64"), ("WEB_WORKERS", "0", "1"), ("JOB_LEASE_S", "1", "2"), ("API_TOKEN_DAYS", "0", "1"), ("SESSION_IDLE_MINUTES", "0", "1"),
    ("IMAGE_HOSTS_ALLOWED", "10.0.0.0/8, nonsense", "10.0.0.0/8"), ("IMAGE_HOSTS_ALLOWED", "10.0.0.1/8", "separated by commas"), ("ADMIN_EMAIL", "nobody", "e-mail"),
    ("ADMIN_EMAIL", "a b@c", "e-mail"), ("PUBLIC_URL", "cloud.example.org", "https:"), ("RATE_LIMIT_STORAGE", "disk://x", "redis"), ("TRUSTED_PROXIES", "yes", "integer"),
    ("RATE_LIMIT_PER_MINUTE", "-5", "0"), ("DB_PORT", "0x10", "integer"), ("IMAGE_MAX_GIB", "two\nlines", "integer"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "accepted"), WRONG)
def test_a_wrong_value_is_one_line_with_name_value_and_what_is_accepted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, accepted: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        Settings.load()
    text = str(refused.value)
    assert len(text.splitlines()) == 1
    assert text.startswith(f"{name}={value!r} is not accepted: ")
    assert accepted in text


def test_several_wrong_values_are_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTAL_PORT", "x")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(SettingsError) as refused:
        Settings.load()
    assert {line.partition("=")[0] for line in str(refused.value).splitlines()} == {"PORTAL_PORT", "LOG_LEVEL"}


@pytest.mark.parametrize(
    "value", ["mysql://u:hunter2@h/db", "mysql:u:hunter2@h/db", "mysql://u:hun@hunter2@h", "mysql://h/db?password=hunter2", "mysql://:hunter2@h"]
)
def test_a_refused_url_is_repeated_without_its_password(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DATABASE_URL", value)
    with pytest.raises(SettingsError) as refused:
        Settings.load()
    assert "hunter2" not in str(refused.value)


def test_what_is_printed_masks_secrets_and_names_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "DATABASE_URL": "postgresql://portal:hunter2@db/portal?sslpassword=hunter2", "QUEUE_URL": "amqp://u:hunter2@rabbit//", "SECRET_KEY": "hunter2",
        "ADMIN_PASSWORD": "hunter2 and more", "DB_PASSWORD": "hunter2", "RATE_LIMIT_STORAGE": "redis://:hunter2@cache/1", "PORTAL_PORT": "8181",
    }  # fmt: skip
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    rows = {name: (value, source, text) for name, value, source, text in settings.rows()}
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    assert "hunter2" not in repr(rows) + repr(settings.model_dump(include={"secret_key", "admin_password"}))
    assert {name for name, row in rows.items() if row[1] == "environment"} == set(planted)
    assert rows["PORTAL_PORT"][0] == "8181"
    assert rows["DATABASE_URL"][0].endswith("@db/portal?sslpassword=********")
    assert rows["ADMIN_EMAIL"][0] == "admin@atonix.local"
    assert all(text.endswith((".", ";")) for _, _, text in rows.values())


def test_empty_means_unset_and_names_may_be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTAL_PORT", "")
    monkeypatch.setenv("log_level", "WARNING")
    settings = Settings.load()
    assert (settings.portal_port, settings.log_level) == (8080, "warn")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "sqlite:///{data}/portal.db"),
        ({"database_url": "postgres://u@h/d"}, "postgresql+psycopg://u@h/d"),
        ({"database_url": "postgresql://u@h/d"}, "postgresql+psycopg://u@h/d"),
        ({"database_url": "postgresql+psycopg://u@h/d"}, "postgresql+psycopg://u@h/d"),
        (
            {"db_name": "p/q", "db_user": "u@x", "db_password": "/@:", "db_host": "h", "db_port": 1},
            "postgresql+psycopg://u%40x:%2F%40%3A@h:1/p%2Fq",
        ),
        ({"database_url": "sqlite:///x.db", "db_name": "ignored"}, "sqlite:///x.db"),
    ],
)
def test_the_database(tmp_path: Path, given: dict[str, object], url: str) -> None:
    assert Settings.load(data_dir=tmp_path, **given).database() == url.format(data=tmp_path)


def test_the_secret_key_is_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path / "var")
    first = settings.secret()
    path = tmp_path / "var" / "secret_key"
    assert (len(first) >= 48, settings.secret(), path.read_text()) == (True, first, first)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert Settings.load(data_dir=tmp_path / "var", secret_key="given").secret() == "given"
    assert Settings.load(data_dir=tmp_path / "other").secret() != first


def test_many_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path / "var")
    given = race([settings.secret for _ in range(8)])
    assert len(set(given)) == 1, given
    assert threading.active_count() < 50


def test_every_setting_is_in_the_documents() -> None:
    text = (ROOT / "docs" / "reference" / "settings.md").read_text()
    assert [name for name in Settings.model_fields if not re.search(rf"\b{name.upper()}\b", text)] == []
