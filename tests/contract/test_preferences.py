"""Dates and times on pages are in the zone and the manner of whoever reads; exports and the API stay in UTC."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from flask.testing import FlaskClient

from portal.identity.models import User
from portal.identity.preferences import DEFAULT_ZONE, language_of, zone_of
from portal.kernel.db import now
from portal.web import moments
from portal.web.moments import Writer
from tests.support.web import Api, csrf_of

EVENING = datetime(2026, 11, 20, 23, 30, 5, tzinfo=UTC)


def writer(zone: str, language: str = "en") -> Writer:
    return Writer(language, ZoneInfo(zone))


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Makes it a certain moment."""
    return lambda moment: monkeypatch.setattr(moments, "now", lambda: moment)


@pytest.mark.parametrize(
    ("zone", "language", "text"),
    [
        ("UTC", "en", "2026-11-20 23:30:05 UTC"), ("Europe/Ljubljana", "en", "2026-11-21 00:30:05 CET"), ("America/New_York", "en", "2026-11-20 18:30:05 EST"),
        ("Europe/London", "en-GB", "20 Nov 2026 23:30:05 GMT"), ("America/New_York", "en-US", "Nov 20, 2026 6:30:05 PM EST"),
        ("Asia/Kolkata", "en", "2026-11-21 05:00:05 IST"), ("America/Argentina/Buenos_Aires", "en", "2026-11-20 20:30:05 UTC-03"),
    ],
)  # fmt: skip
def test_a_moment_over_the_end_of_a_day(zone: str, language: str, text: str) -> None:
    assert writer(zone, language).exact(EVENING) == text


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC), "2026-03-29 01:59:59 CET"), (datetime(2026, 3, 29, 1, 0, tzinfo=UTC), "2026-03-29 03:00:00 CEST"),
        (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), "2026-10-25 02:30:00 CEST"), (datetime(2026, 10, 25, 1, 30, tzinfo=UTC), "2026-10-25 02:30:00 CET"),
    ],
)  # fmt: skip
def test_a_moment_over_the_change_of_the_clocks(moment: datetime, text: str) -> None:
    assert writer("Europe/Ljubljana").exact(moment) == text


def test_today_is_the_readers_own(at: Callable[[datetime], None]) -> None:
    at(EVENING + timedelta(minutes=40))
    assert writer("UTC").clock_s(EVENING) == "2026-11-20 23:30:05"
    assert writer("Europe/Ljubljana").clock_s(EVENING) == "00:30:05"
    assert writer("America/New_York", "en-US").clock_s(EVENING) == "6:30:05 PM"
    assert writer("America/New_York", "en-US").clock(EVENING) == "6:30 PM"


def test_what_was_long_ago_is_a_day(at: Callable[[datetime], None]) -> None:
    at(datetime(2027, 1, 1, 12, tzinfo=UTC))
    eve = datetime(2026, 12, 31, 10, 30, tzinfo=UTC)
    assert writer("UTC").ago(eve) == "2026-12-31"
    assert writer("Pacific/Kiritimati").ago(eve) == "1 Jan"
    assert writer("UTC", "en-US").ago(eve) == "Dec 31, 2026"
    assert (writer("UTC").ago(None), writer("UTC").exact(None)) == ("–", "–")


def save(client: FlaskClient, **given: str) -> int:
    return client.post("/account/preferences", data={"csrf_token": csrf_of(client.get("/account")), **given}).status_code


def test_a_page_is_in_the_chosen_zone_and_says_so(client_for: Callable[..., FlaskClient]) -> None:
    client = client_for()
    page = client.get("/account").text
    assert '<html lang="en"' in page
    assert re.search(r"It is \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC there", page)
    assert "Texts are in English" in page
    assert save(client, language="en-US", time_zone="America/New_York", theme="dark") == 303
    page = client.get("/account").text
    assert '<html lang="en-US" data-theme="dark"' in page
    assert re.search(r"It is [A-Z][a-z]{2} \d+, \d{4} \d+:\d\d:\d\d [AP]M E[SD]T there", page)
    assert "Time (America/New_York)" in client.get("/audit").text
    assert client_for().get("/account").text.count("America/New_York</option>") == 0
    assert "EST there" not in client_for().get("/account").text


@pytest.mark.parametrize("wrong", [{"time_zone": "Mars/Olympus"}, {"time_zone": "../../etc/passwd"}, {"time_zone": ""}, {"language": "sl"}])
def test_what_there_is_not_is_refused(client_for: Callable[..., FlaskClient], wrong: dict[str, str]) -> None:
    client = client_for()
    assert save(client, language="en", time_zone="UTC") == 303
    assert save(client, **{"language": "en", "time_zone": "UTC", **wrong}) == 422
    assert "UTC there" in client.get("/account").text


def test_by_api(api: Api) -> None:
    changed = api("PATCH", "/auth/me", {"language": "en-GB", "time_zone": "Europe/London"})
    assert (changed.json["language"], changed.json["time_zone"]) == ("en-GB", "Europe/London")
    assert api("PATCH", "/auth/me", {"language": "en-US"}).json["time_zone"] == "Europe/London"
    for wrong in ({"time_zone": "Mars/Olympus"}, {"language": "sl"}, {"color": "red"}):
        assert api("PATCH", "/auth/me", wrong).status_code == 400
    assert api.get("/auth/me").json["created_at"].endswith(("Z", "+00:00"))
    key = api.post("/api/v1/api-keys", {"name": "reader", "scopes": ["compute:read"]}).json["key"]
    assert api("PATCH", "/auth/me", {"language": "en"}, headers={"Authorization": f"Token {key}"}).status_code == 403


def test_a_zone_that_is_gone_is_utc() -> None:
    user = User(preferences={"time_zone": "Gone/Zone", "language": "xx"})
    assert (zone_of(user).key, language_of(user), now().tzinfo) == (DEFAULT_ZONE, "en", UTC)
