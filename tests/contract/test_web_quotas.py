"""Pages of quotas: bars, history, limits of users, the request form, the inbox, alerts."""

import html
import re
from collections.abc import Callable
from datetime import date, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import instance_create
from portal.compute.key_pairs import key_pair_create, key_pair_delete
from portal.kernel import quota_history
from portal.kernel.db import now, transaction
from portal.kernel.limits import quota_update, user_quota_update
from portal.kernel.operations import run
from portal.kernel.quota import Quota
from portal.kernel.quota_days import QuotaHistory
from portal.kernel.quota_requests import RequestDecision, quota_request_create, quota_request_decide
from tests.support.people import People
from tests.support.web import Api, browser, csrf_of


@pytest.fixture
def boss(client_for: Callable[..., FlaskClient]) -> FlaskClient:
    """A browser of an administrator of the platform."""
    return client_for("platform_admin")


def row_of(page: str, label: str) -> str:
    return next(row for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL) if f'<th scope="row">{label}' in row)


def test_bars_show_use_and_what_is_reserved(people: People, app: Flask) -> None:
    boss, user = people.context(people.user("platform_admin")), people.user("developer")
    quota_update(boss, boss.project_id or "", "instances", 2)
    run(people.context(user), instance_create, None, {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny"})
    client = browser(app, people, user)
    row = row_of(client.get("/quotas").text, "Instances")
    assert 'aria-label="Instances: 0 in use, 1 reserved of 2"' in row
    assert '<rect class="r"' in row
    run(people.context(user), instance_create, None, {"name": "web-2", "flavor": "t3-micro", "image": "atonix-tiny"})
    for path in ("/quotas", "/"):
        assert re.search(r'<svg class="meter bad"[^>]*aria-label="Instances: 0 in use, 2 reserved of 2"', client.get(path).text), path
    boss.settings = boss.settings.model_copy(update={"quota_four_eyes": False})
    quota_update(boss, boss.project_id or "", "instances", 3, warning_threshold=60)
    assert '<svg class="meter warn"' in row_of(client.get("/quotas").text, "Instances")


def test_limits_and_thresholds_are_set_on_the_page(boss: FlaskClient, client_for: Callable[..., FlaskClient]) -> None:
    token = csrf_of(boss.get("/quotas"))
    assert boss.post("/quotas/cpus", data={"csrf_token": token, "limit": "7", "warning_threshold": "50"}).status_code == 303
    row = row_of(boss.get("/quotas").text, "vCPU")
    assert ('value="7"' in row, 'value="50"' in row) == (True, True)
    for wrong in ({"limit": "many"}, {"limit": "7", "warning_threshold": "0"}, {"limit": "7", "warning_threshold": "x"}):
        answer = boss.post("/quotas/cpus", data={"csrf_token": token, **wrong})
        assert answer.status_code == 422, wrong
        assert 'role="alert"' in answer.text
    alone = boss.post("/quotas/cpus", data={"csrf_token": token, "limit": "8"})
    assert (alone.status_code, "QUOTA_FOUR_EYES" in alone.text, 'value="8"' in alone.text) == (403, True, True)
    mine = client_for("project_admin")
    page = mine.get("/quotas")
    assert 'name="warning_threshold"' not in page.text
    assert mine.post("/quotas/cpus", data={"csrf_token": csrf_of(page), "limit": "9"}).status_code == 403


def test_users_are_limited_on_the_page(boss: FlaskClient, app: Flask, people: People) -> None:
    user = people.user("developer")
    run(people.context(user), key_pair_create, None, {"name": "k"})
    token = csrf_of(boss.get("/quotas"))
    given = {"csrf_token": token, "username": user.username, "dimension": "key_pairs", "limit": "1"}
    for change, field in (({"username": "nobody-there"}, "username"), ({"dimension": "x"}, "dimension"), ({"limit": "-1"}, "limit")):
        answer = boss.post("/quotas/users", data={**given, **change})
        assert (answer.status_code, f'id="{field}-error"' in answer.text) == (422, True), change
    assert boss.post("/quotas/users", data=given).status_code == 303
    assert 'aria-label="Key pairs: 1 in use of 1"' in row_of(boss.get("/quotas").text, user.username)
    client = browser(app, people, user)
    assert "Your own limits" in client.get("/quotas").text
    assert client.post("/quotas/users", data={**given, "csrf_token": csrf_of(client.get("/quotas")), "limit": "9"}).status_code == 403
    refused = client.post("/compute/key-pairs/new", data={"csrf_token": csrf_of(client.get("/quotas")), "name": "k2"})
    assert "Your own limit for key_pairs: 1 of 1 used" in html.unescape(refused.text)
    assert boss.post("/quotas/users", data={**given, "limit": ""}).status_code == 303
    assert "No user is limited" in boss.get("/quotas").text


def test_one_key_too_many_is_said_in_the_form(app: Flask, people: People) -> None:
    user, boss = people.user("project_admin"), people.context(people.user("platform_admin"))
    user_quota_update(boss, user.id, "api_keys", 0)
    client = browser(app, people, user)
    refused = client.post("/account/tokens", data={"csrf_token": csrf_of(client.get("/account")), "name": "one"})
    assert (refused.status_code, 'value="one"' in refused.text) == (429, True)
    assert "Your own limit for api_keys: 0 of 0 used" in html.unescape(refused.text)


def test_a_refusal_leads_to_the_form_that_asks_for_more(client_for: Callable[..., FlaskClient], people: People) -> None:
    boss = people.context(people.user("platform_admin"))
    quota_update(boss, boss.project_id or "", "key_pairs", 0)
    client = client_for("developer")
    refused = client.post("/compute/key-pairs/new", data={"csrf_token": csrf_of(client.get("/quotas")), "name": "k"})
    assert (refused.status_code, 'href="/quotas/requests/new?dimension=key_pairs"' in refused.text) == (429, True)
    form = client.get("/quotas/requests/new?dimension=key_pairs").text
    assert re.search(r'<option value="key_pairs" selected', form)


def test_asking_and_deciding_without_scripts(boss: FlaskClient, people: People, app: Flask) -> None:
    user = people.user("developer")
    client = browser(app, people, user)
    assert "Nothing was asked for" in client.get("/quotas/requests").text
    given = {"csrf_token": csrf_of(client.get("/quotas/requests/new")), "dimension": "cpus", "limit": "500", "reason": "<b>The shop</b> grows."}
    for change, field in (({"limit": "x"}, "limit"), ({"limit": "400"}, "limit"), ({"reason": ""}, "reason"), ({"dimension": "?"}, "dimension")):
        answer = client.post("/quotas/requests/new", data={**given, **change})
        assert (answer.status_code, f'id="{field}-error"' in answer.text) == (422, True), change
    assert client.post("/quotas/requests/new", data=given).location == "/quotas/requests"
    assert client.post("/quotas/requests/new", data=given).status_code == 409
    page = client.get("/quotas/requests").text
    (request_id,) = set(re.findall(r"/quotas/requests/(qr-\w+)/withdraw", page))
    assert "500 asked for" in client.get("/quotas").text
    inbox = boss.get("/quotas/requests").text
    assert "&lt;b&gt;The shop&lt;/b&gt; grows." in inbox
    assert "Quota requests<span" in boss.get("/").text
    assert "Quota requests" not in client.get("/").text
    token, url = csrf_of(boss.get("/quotas")), f"/quotas/requests/{request_id}/decide"
    wrong = boss.post(url, data={"csrf_token": token, "decision": "approve", "limit": "501", "note": "kept"})
    assert (wrong.status_code, 'id="limit-error"' in wrong.text, ">kept</textarea>" in wrong.text) == (422, True, True)
    assert boss.post(url, data={"csrf_token": token, "decision": "maybe"}).status_code == 400
    assert client.post(url, data={"csrf_token": given["csrf_token"], "decision": "approve"}).status_code == 403
    assert boss.post(url, data={"csrf_token": token, "decision": "approve", "limit": "450", "note": "Enough."}).status_code == 303
    assert boss.post(url, data={"csrf_token": token, "decision": "deny"}).status_code == 409
    assert "450" in boss.get("/quotas/requests?state=approved").text
    assert "Enough." in client.get("/quotas/requests").text
    assert "Alerts, 1 unread" in client.get("/").text
    alerts = client.get("/alerts").text
    (alert_id,) = set(re.findall(r"/alerts/(alert-\w+)/read", alerts))
    data = {"csrf_token": given["csrf_token"]}
    assert boss.post(f"/alerts/{alert_id}/dismiss", data={"csrf_token": token}).status_code == 404
    assert client.post(f"/alerts/{alert_id}/read", data=data).location == "/quotas/requests"
    assert "unread" not in client.get("/").text
    assert client.post("/alerts/read-all", data=data).status_code == 303
    assert client.post(f"/alerts/{alert_id}/dismiss", data=data).status_code == 303
    assert "No alerts" in client.get("/alerts").text


def test_nobody_is_offered_to_decide_their_own(people: People, app: Flask) -> None:
    user = people.user("platform_admin")
    ctx = people.context(user)
    row = quota_request_create(ctx, ctx.project_id or "", "cpus", limit=500, reason="Mine.")
    client = browser(app, people, user)
    page = client.get("/quotas/requests").text
    assert "another administrator decides" in page
    assert 'name="decision"' not in page
    refused = client.post(f"/quotas/requests/{row.id}/decide", data={"csrf_token": csrf_of(client.get("/quotas")), "decision": "approve"})
    assert (refused.status_code, "QUOTA_FOUR_EYES" in refused.text) == (403, True)
    data = {"csrf_token": csrf_of(client.get("/quotas"))}
    assert client.post(f"/quotas/requests/{row.id}/withdraw", data=data).status_code == 303


def test_the_inbox_tells_what_came_of_it(boss: FlaskClient, people: People) -> None:
    ctx, decider = people.context(people.user("developer")), people.context(people.user("platform_admin"))
    for dimension, limit, decision in (("cpus", 500, RequestDecision(approve=True, limit=450)), ("gpus", 30, RequestDecision(approve=False))):
        row = quota_request_create(ctx, ctx.project_id or "", dimension, limit=limit, reason="More.")
        quota_request_decide(decider, row.id, decision)
    page = boss.get("/quotas/requests").text
    assert "vCPU: 400 to 450, default" in page
    assert "GPUs: stays at 8, 30 asked for, default" in page
    denied = row_of(boss.get("/quotas/requests?state=denied").text, "GPUs")
    assert ("<b>30</b>" in denied, " to " in denied) == (True, False)


def test_requests_beyond_the_first_page_are_reached(boss: FlaskClient, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.web.quota_requests.LIMIT", 2)
    asker = people.context(people.user("developer"))
    rows = [quota_request_create(asker, asker.project_id or "", name, limit=9999, reason="More.") for name in ("cpus", "gpus", "images")]
    (older,) = re.findall(r'href="(/quotas/requests\?[^"]*cursor[^"]*)"', boss.get("/quotas/requests").text)
    assert rows[2].id in boss.get(html.unescape(older)).text
    # A link leads to one wherever it stands.
    assert f'action="/quotas/requests/{rows[2].id}/decide"' in boss.get(f"/quotas/requests?request={rows[2].id}").text


# -- history ---------------------------------------------------------------------------------------------------------------------------------


def a_day_passes(sessions: sessionmaker[Session]) -> None:
    """All that was written down today is of yesterday."""
    with sessions() as session, transaction(session):
        for row in session.scalars(select(QuotaHistory).order_by(QuotaHistory.day)):
            row.day -= timedelta(days=1)
        for quota in session.scalars(select(Quota).where(Quota.peak_day.is_not(None))):
            quota.peak_day = (quota.peak_day or now().date()) - timedelta(days=1)


def peaks(api: Api) -> dict[int, int]:
    """How many days ago → the peak of key pairs."""
    today = now().date()
    return {(today - date.fromisoformat(each["day"])).days: each["peak"] for each in api.get("/quotas/key_pairs").json["history"]}


@pytest.mark.parametrize("written", [True, False])
def test_a_peak_counts_for_its_own_day(api_for: Callable[..., Api], people: People, database: sessionmaker[Session], written: bool) -> None:
    """Also that of the hour before midnight, which periodic work has not seen; and what is there at midnight is used on the next day, too."""
    api = api_for("developer")
    ctx = people.context(api.user)
    rows = [run(ctx, key_pair_create, None, {"name": f"k{n}"}).row for n in range(3)]
    if written:
        with database() as session:
            quota_history.write(session)
    run(ctx, key_pair_create, None, {"name": "late"})
    for row in rows[:2]:
        run(ctx, key_pair_delete, row.id)
    assert peaks(api) == {0: 4}
    a_day_passes(database)
    assert peaks(api) == {1: 4, 0: 2}
    run(ctx, key_pair_delete, rows[2].id)
    for _ in range(2):
        assert peaks(api) == {1: 4, 0: 2}
        with database() as session:
            quota_history.write(session)
    a_day_passes(database)
    with database() as session:
        quota_history.write(session)
    a_day_passes(database)
    assert peaks(api) == {3: 4, 2: 2, 1: 1, 0: 1}


def test_history_before_the_first_round_is_the_present(api: Api) -> None:
    assert api.get("/quotas/key_pairs").json["history"] == [{"day": now().date().isoformat(), "peak": 0, "limit": 100}]


def test_old_history_goes(people: People, database: sessionmaker[Session]) -> None:
    today = now().date()
    with database() as session:
        with transaction(session):
            for days in (366, 367):
                session.add(QuotaHistory(project_id=people.project_id, dimension="cpus", day=today - timedelta(days=days), peak=1, limit=2))
        quota_history.write(session)
        days = {row.day for row in session.query(QuotaHistory).where(QuotaHistory.dimension == "cpus")}
    assert days == {today - timedelta(days=366), today}


def test_the_page_draws_history_and_says_it(client_for: Callable[..., FlaskClient], people: People, database: sessionmaker[Session]) -> None:
    today = now().date()
    with database() as session, transaction(session):
        for days, peak in ((2, 4), (1, 8)):
            session.add(QuotaHistory(project_id=people.project_id, dimension="cpus", day=today - timedelta(days=days), peak=peak, limit=400))
    row = row_of(client_for("viewer").get("/quotas").text, "vCPU")
    assert '<path d="M0.0 10.0L50.0 0.0L100.0 20.0"/>' in row
    assert f"most 8 on {today - timedelta(days=1):%-d %B}, least 0, now 0" in row
