"""Log lines: their shape, and what never gets into them."""

import io
import json
import logging
import logging.config
from pathlib import Path

import pytest

from portal.logging import JsonFormatter, redact, setup_logging
from tests.support.databases import settings_for
from tests.support.tree import VERSION


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("password=SECRET", "password="), ("Password: SECRET", "Password: "), ('{"password": "SECRET"}', '{"password": '), ("{'password': 'SECRET'}", "{'password': "),
        ('{"password": "SECRET two SECRET"}', "}"), ("{'new_password': 'SECRET two SECRET', 'name': 'web'}", "'name': 'web'"), ('"token":"SECRET"', "token"),
        ('{\\"password\\": \\"SECRET two SECRET\\"}', "password"), ("Authorization: Token SECRET", "Authorization: "), ("Authorization: Bearer SECRET", ""),
        ("authorization=Basic SECRET", ""), ("Cookie: atonix_session=SECRET", "Cookie: "), ("Set-Cookie: x=SECRET; Path=/", ""), ("api_key=SECRET&name=web", "&name=web"),
        ("X-API-Key: SECRET", "X-API-Key"), ("apikey=SECRET", ""), ("SECRET_KEY=SECRET", "SECRET_KEY="), ("client_secret=SECRET", ""), ("user_data='SECRET two SECRET'", ""),
        ("postgresql+psycopg://portal:SECRET@db/portal", "postgresql+psycopg://portal:********@db/portal"), ("redis://:SECRET@cache:6379/0", "@cache:6379/0"),
        ("amqp://u:SECRET@rabbit//", "@rabbit//"), ("postgresql://u:p@SECRET@db/x", "@db/x"), ("fetch https://u:SECRET/slash@h/x?y=z", "@h/x?y=z"),
        ("a atonix_SECRETSECRETSECRET b", "a atonix_******** b"), ("DETAIL:  Failing row contains (i-1, SECRET\n\nSECRET).\n[SQL: next]", "[SQL: next]"),
        ("-----BEGIN " + "OPENSSH PRIVATE KEY-----\nSECRET\nSECRET\n-----END OPENSSH PRIVATE KEY----- rest", " rest"),
        ("-----BEGIN " + "RSA PRIVATE KEY-----\nSECRET", ""), ("private_key = SECRET", ""),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_masked(text: str, kept: str) -> None:
    shown = redact(text)
    assert "SECRET" not in shown.replace("SECRET_KEY=", "")
    assert kept in shown


@pytest.mark.parametrize(
    "text",
    [
        "GET /compute/instances 200",
        "step failed: no answer",
        "http://example.org:8080/x",
        "tokens: none left",
        "passwords match",
        "at 12:30@noon",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text).replace("********", "none") == text


def line_of(**record: object) -> dict[str, object]:
    made = logging.makeLogRecord({"name": "portal.test", "levelname": "INFO", "msg": "hello", **record})
    parsed: dict[str, object] = json.loads(JsonFormatter("atonix-portal", "staging", "1.2.3").format(made))
    return parsed


def test_a_line_has_the_prescribed_shape() -> None:
    line = line_of(request_id="req-1", user_id="usr-1", duration_ms=2.5, status_code=200, method="GET", path="/x", unknown="dropped")
    assert str(line.pop("timestamp")).endswith("Z")
    assert line == {
        "level": "info", "logger": "portal.test", "message": "hello", "service": "atonix-portal", "request_id": "req-1", "user_id": "usr-1", "duration_ms": 2.5,
        "status_code": 200, "method": "GET", "path": "/x", "correlation_id": "req-1", "status": 200,
        "context": {"service": "atonix-portal", "environment": "staging", "version": "1.2.3"},
    }  # fmt: skip


@pytest.mark.parametrize(("level", "name"), [("DEBUG", "debug"), ("INFO", "info"), ("WARNING", "warn"), ("ERROR", "error"), ("CRITICAL", "fatal")])
def test_levels_have_their_standard_names(level: str, name: str) -> None:
    assert line_of(levelname=level)["level"] == name


def test_one_line_whatever_is_said() -> None:
    for text in ("two\nlines", '"quotes"', "nul\x00", "\ud800", "ä"):
        made = logging.makeLogRecord({"msg": "%s", "args": (text,), "levelname": "INFO"})
        assert "\n" not in JsonFormatter().format(made)


def test_exceptions_are_told_without_secrets() -> None:
    try:
        int("password=SECRET")
    except ValueError as error:
        line = line_of(exc_info=(type(error), error, error.__traceback__), msg="failed", path="/x?token=SECRET")
    assert "Traceback" in str(line["exception"])
    assert "SECRET" not in json.dumps(line)


@pytest.mark.parametrize(
    ("level", "number"), [("debug", logging.DEBUG), ("info", logging.INFO), ("warn", logging.WARNING), ("fatal", logging.CRITICAL)]
)
def test_the_level_and_the_name_of_the_installation_come_from_the_settings(
    tmp_path: Path, level: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    try:
        setup_logging(settings_for(tmp_path, log_level=level, environment="attic"))
        # At its lowest level it writes down the tokens that it issues.
        assert not logging.getLogger("authlib.oauth2.rfc6749.grants").isEnabledFor(logging.DEBUG)
        assert root.level == number
        logging.getLogger("portal.test").critical("here")
        assert json.loads(out.getvalue())["context"] == {"service": "atonix-portal", "environment": "attic", "version": VERSION}
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
