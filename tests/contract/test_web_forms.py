"""Forms: what was typed comes back with its errors, nothing is sent twice, nothing is lost with the session, and none of it needs a script."""

import csv
import html
import io
import re
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from sqlalchemy import delete, select
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.test import TestResponse

from portal.compute.instances import Instance
from portal.compute.key_pairs import KeyPair
from portal.http.request import SESSION_COOKIE
from portal.identity.models import User, UserSession
from tests.support.draining import TestWorker
from tests.support.people import PASSWORD
from tests.support.web import Api, csrf_of

NEW = "/compute/instances/new"
TYPED = {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny", "count": "1", "root_volume_size_gb": "8", "tags": "env=test"}


def hidden_of(page: TestResponse, form: str = "operation-form") -> dict[str, str]:
    """Hidden fields of a form."""
    part = page.text[page.text.index(f'id="{form}"') :] if f'id="{form}"' in page.text else page.text
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', part)
    return {name: html.unescape(value) for name, value in found} | {"csrf_token": csrf_of(page)}


def instances(database: sessionmaker[Session]) -> list[Instance]:
    with database() as session:
        return list(session.scalars(select(Instance).order_by(Instance.name)))


@pytest.fixture
def browser(client_for: Callable[..., FlaskClient]) -> FlaskClient:
    """A project admin's."""
    return client_for()


def test_an_instance_is_made_and_unmade_without_scripts(browser: FlaskClient, worker: TestWorker, database: sessionmaker[Session]) -> None:
    page = browser.get(NEW)
    sent = browser.post(NEW, data={**hidden_of(page), **TYPED})
    assert (sent.status_code, "/compute/instances/i-" in sent.location) == (303, True)
    assert "Instance web-1 is being created." in browser.get(sent.location).text
    worker.drain()
    for verb, state in (("stop", "stopped"), ("start", "running"), ("terminate", "terminated")):
        ask = browser.get(f"{sent.location}/actions/{verb}")
        answer = browser.post(f"{sent.location}/actions/{verb}", data={**hidden_of(ask), "confirm": "web-1"})
        assert answer.status_code == 303
        worker.drain()
        assert instances(database)[0].state == state


def test_a_form_that_is_sent_twice_counts_once(browser: FlaskClient, database: sessionmaker[Session]) -> None:
    given = {**hidden_of(browser.get(NEW)), **TYPED}
    first, second = browser.post(NEW, data=given), browser.post(NEW, data=given)
    assert first.location == second.location
    assert len(instances(database)) == 1


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"name": ""}, "name", "required"),
        ({"name": "x" * 300}, "name", "255"),
        ({"flavor": "t9-huge"}, "flavor", "There is no flavor t9-huge here"),
        ({"flavor": ""}, "flavor", "required"),
        ({"image": "ami-none"}, "image", "There is no image ami-none here"),
        ({"count": "many"}, "count", "integer"),
        ({"count": "21"}, "count", "20"),
        ({"root_volume_size_gb": "0"}, "root_volume_size_gb", "1"),
        ({"user_data": "x" * 16_385}, "user_data", "16384"),
        ({"tags": "no equals sign"}, "tags", "Line 1 must be key=value"),
        ({"tags": "\n".join(f"k{n}=v" for n in range(51))}, "tags", "50"),
        ({"tags": "a=1\na=2"}, "tags", "second value"),
    ],
)
def test_errors_stand_at_their_field(browser: FlaskClient, database: sessionmaker[Session], change: dict[str, str], field: str, words: str) -> None:
    given = {**hidden_of(browser.get(NEW)), **TYPED, "name": "kept-name", **change}
    answer = browser.post(NEW, data=given)
    assert answer.status_code == 422
    text = html.unescape(answer.text)
    assert words in text
    assert f'id="{field}-error"' in text
    if field != "name":
        assert 'value="kept-name"' in text
    assert instances(database) == []


def test_a_quota_stands_above_the_form(browser: FlaskClient, client_for: Callable[..., FlaskClient], database: sessionmaker[Session]) -> None:
    admin = client_for("platform_admin")
    limit = admin.post("/quotas/cpus", data={"csrf_token": csrf_of(admin.get("/quotas")), "limit": "1"})
    assert limit.status_code == 303
    answer = browser.post(NEW, data={**hidden_of(browser.get(NEW)), **TYPED, "count": "2"})
    assert answer.status_code == 429
    assert "vCPU" in answer.text
    assert instances(database) == []
    for wrong in ("", "-1", "many", "9" * 17):
        assert admin.post("/quotas/cpus", data={"csrf_token": csrf_of(admin.get("/quotas")), "limit": wrong}).status_code == 422
    assert admin.post("/quotas/nothing", data={"csrf_token": csrf_of(admin.get("/quotas")), "limit": "1"}).status_code in {404, 422}
    assert browser.post("/quotas/cpus", data={"csrf_token": csrf_of(browser.get("/quotas")), "limit": "9"}).status_code == 403


def test_the_side_panel_tells_cost_and_request(browser: FlaskClient) -> None:
    token = csrf_of(browser.get(NEW))
    answer = browser.post("/compute/instances/estimate", data={**TYPED, "name": "it's", "csrf_token": token}, headers={"HX-Request": "true"})
    text = html.unescape(answer.text)
    assert answer.status_code == 200
    assert "curl -X POST" in text
    assert "it'\"'\"'s" in text
    missing = browser.post("/compute/instances/estimate", data={"csrf_token": token}, headers={"HX-Request": "true"})
    assert "Name" in missing.text
    broken = browser.post("/compute/instances/estimate", data={**TYPED, "tags": "x", "csrf_token": token}, headers={"HX-Request": "true"})
    assert broken.status_code == 200


def test_a_link_can_fill_the_form(browser: FlaskClient) -> None:
    text = browser.get(f"{NEW}?image=atonix-tiny&name=mine&nothing=1").text
    assert 'value="mine"' in text
    assert re.search(r'value="atonix-tiny" checked', text)


def test_what_a_link_does_not_say_is_as_in_a_form_that_nobody_touched(browser: FlaskClient) -> None:
    untouched, filled = browser.get("/storage/buckets/new").text, browser.get("/storage/buckets/new?name=logs-of-2026").text
    ticked = re.compile(r'<input[^>]* name="(\w+)"[^>]* checked')
    assert 'value="logs-of-2026"' in filled
    assert "versioning_enabled" in ticked.findall(filled)
    assert ticked.findall(filled) == ticked.findall(untouched)


def test_somebody_else_was_faster(browser: FlaskClient, api: Api, worker: TestWorker) -> None:
    made = api.post("/compute/instances", {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny"}).json["instance_id"]
    worker.drain()
    url = f"/compute/instances/{made}/actions/update"
    given = hidden_of(browser.get(url))
    assert api("PATCH", f"/compute/instances/{made}", {"description": "theirs"}).status_code == 200
    answer = browser.post(url, data={**given, "name": "mine", "tags": ""})
    assert answer.status_code == 412
    assert 'value="mine"' in answer.text
    fresh = hidden_of(browser.get(url))
    assert browser.post(url, data={**fresh, "name": "mine", "description": "theirs", "tags": ""}).status_code == 303
    assert api.get(f"/compute/instances/{made}").json["name"] == "mine"


def test_danger_asks_for_the_name(browser: FlaskClient, api: Api, worker: TestWorker) -> None:
    made = api.post("/compute/instances", {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny"}).json["instance_id"]
    worker.drain()
    url = f"/compute/instances/{made}/actions/terminate"
    answer = browser.post(url, data={**hidden_of(browser.get(url)), "confirm": "web-2"})
    assert (answer.status_code, "Type web-1 to confirm." in answer.text) == (422, True)
    assert api.get(f"/compute/instances/{made}").json["status"] == "running"


def end_sessions(database: sessionmaker[Session]) -> None:
    """End everybody's sessions, as time would."""
    with database() as session:
        session.execute(delete(UserSession))
        session.commit()


def carried_by(page: TestResponse) -> dict[str, str]:
    """What a sign-in form keeps of the form that came too late."""
    return {name: html.unescape(value) for name, value in re.findall(r'name="(carry\.[^"]+)" value="([^"]*)"', page.text)}


def test_what_was_typed_outlives_the_session(browser: FlaskClient, database: sessionmaker[Session]) -> None:
    given = {**hidden_of(browser.get(NEW)), **TYPED}
    with database() as session:
        username = session.scalars(select(User.username).join(UserSession, UserSession.user_id == User.id)).one()
    end_sessions(database)
    stopped = browser.post(NEW, data=given)
    assert stopped.status_code == 401
    assert "Your session has ended" in stopped.text
    assert "What you typed is kept" in stopped.text
    carried = carried_by(stopped)
    assert carried["carry.name"] == "web-1"
    assert "carry.csrf_token" not in carried
    wrong = browser.post("/login", data={"csrf_token": csrf_of(stopped), "username": username, "password": "wrong", "next": NEW, **carried})
    assert (wrong.status_code, carried_by(wrong)) == (401, carried)
    asked = browser.post("/login", data={"csrf_token": csrf_of(wrong), "username": username, "password": PASSWORD, "next": NEW, **carried})
    assert "Nothing has been sent yet" in asked.text
    assert instances(database) == []
    again = {name: html.unescape(value) for name, value in re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', asked.text)}
    assert browser.post(NEW, data={**again, "csrf_token": csrf_of(asked)}).status_code == 303
    assert [row.name for row in instances(database)] == ["web-1"]


def test_what_was_typed_outlives_a_cookie_that_the_browser_dropped(browser: FlaskClient) -> None:
    given = {**hidden_of(browser.get(NEW)), **TYPED}
    browser.delete_cookie(SESSION_COOKIE)
    stopped = browser.post(NEW, data=given)
    assert (stopped.status_code, carried_by(stopped)["carry.name"]) == (401, "web-1")


def test_a_form_from_elsewhere_is_refused(browser: FlaskClient, database: sessionmaker[Session]) -> None:
    for data in (TYPED, {**TYPED, "csrf_token": "made-up"}):
        answer = browser.post(NEW, data=data)
        assert answer.status_code == 400
        assert "did not come from this portal" in answer.text
    assert instances(database) == []


def test_secrets_are_shown_once_and_never_carried(browser: FlaskClient, database: sessionmaker[Session]) -> None:
    url = "/compute/key-pairs/new"
    made = browser.post(url, data={**hidden_of(browser.get(url)), "name": "mine", "public_key": ""})
    assert made.status_code == 201
    assert "PRIVATE KEY" in made.text
    with database() as session:
        key = session.scalars(select(KeyPair)).one()
    assert "PRIVATE KEY" not in browser.get(f"/compute/key-pairs/{key.id}").text
    change = browser.get("/account/password")
    end_sessions(database)
    stopped = browser.post(
        "/account/password", data={"csrf_token": csrf_of(change), "old": "old-secret-1", "new": "new-secret-1", "again": "new-secret-1"}
    )
    assert stopped.status_code == 401
    assert "secret-1" not in stopped.text


# -- lists -----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def several(api: Api, worker: TestWorker) -> list[str]:
    """Three instances, one of them protected."""
    made = [
        api.post("/compute/instances", {"name": f"web-{n}", "flavor": "t3-micro", "image": "atonix-tiny", "tags": {"n": str(n)}}).json
        for n in range(3)
    ]
    worker.drain()
    assert api("PATCH", f"/compute/instances/{made[1]['instance_id']}", {"enable_termination_protection": True}).status_code == 200
    return [each["instance_id"] for each in made]


def test_a_bulk_action_takes_exactly_what_was_ticked(
    browser: FlaskClient, several: list[str], worker: TestWorker, database: sessionmaker[Session]
) -> None:
    url = "/compute/instances/bulk/terminate"
    ask = browser.get(url, query_string={"ids": several[:2]})
    assert "web-0" in ask.text
    assert "web-2" not in ask.text
    done = browser.post(url, data={"csrf_token": csrf_of(ask), "ids": several[:2]})
    assert (done.status_code, "1 succeeded, 1 failed" in done.text) == (200, True)
    assert "protect" in done.text
    worker.drain()
    assert [row.state for row in instances(database)] == ["terminated", "running", "running"]
    fine = browser.post("/compute/instances/bulk/stop", data={"csrf_token": csrf_of(ask), "ids": several[1:]})
    assert fine.status_code == 303
    assert "2 succeeded, 0 failed" in browser.get(fine.location).text
    for wrong in ([], ["i-none"] * 1, [f"i-{n}" for n in range(101)]):
        assert browser.get(url, query_string={"ids": wrong}).status_code in {400, 404}
    assert browser.get("/compute/instances/bulk/nothing", query_string={"ids": several}).status_code == 404


def test_filters_live_in_the_address(browser: FlaskClient, several: list[str]) -> None:
    del several
    text = browser.get("/compute/instances?search=web&state=running&tag=n:1&ordering=-name").text
    assert "web-1" in text
    assert "web-0" not in text
    assert re.search(r'aria-label="Remove filter Tag n:1"', text)
    assert "search=web&amp;state=running&amp;ordering=-name" in text
    part = browser.get("/compute/instances?search=web-2", headers={"HX-Request": "true", "HX-Target": "rows"}).text
    assert "web-2" in part
    assert "<html" not in part
    assert "web-1" not in part
    assert "Nothing" in browser.get("/compute/instances?search=none-such").text or "No " in browser.get("/compute/instances?search=none-such").text
    for wrong in ("ordering=password", "limit=0", "cursor=abc", "nothing=1", "state=flying"):
        assert browser.get(f"/compute/instances?{wrong}").status_code == 400, wrong


def test_pages_follow_each_other(browser: FlaskClient, several: list[str]) -> None:
    seen, url = [], "/compute/instances?limit=2&ordering=name"
    while url:
        text = browser.get(url).text
        seen += re.findall(r">(web-\d)</a>", text)
        found = re.search(r'href="([^"]*cursor=[^"]*)"[^>]*rel="next"|rel="next"[^>]*href="([^"]*)"', text)
        url = html.unescape(found.group(1) or found.group(2)) if found else ""
    assert seen == ["web-0", "web-1", "web-2"]
    assert len(several) == 3


def test_csv_takes_what_the_list_shows(browser: FlaskClient, several: list[str], api: Api) -> None:
    api("PATCH", f"/compute/instances/{several[0]}", {"name": "=1+1"})
    answer = browser.get("/compute/instances.csv?state=running&ordering=name")
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert (rows[0][0], len(rows)) == ("ID", 4)
    assert {row[1] for row in rows[1:]} == {"'=1+1", "web-1", "web-2"}


def test_columns_are_chosen_and_kept(browser: FlaskClient, several: list[str]) -> None:
    del several
    page = browser.get("/compute/instances")
    assert ">Created<" in page.text or "Created" in page.text
    answer = browser.post("/compute/instances/columns", data={"csrf_token": csrf_of(page), "columns": ["state", "made-up"]})
    assert answer.status_code == 303
    head = re.search(r"<thead>.*?</thead>", browser.get("/compute/instances").text, re.DOTALL)
    assert head is not None
    assert "State" in head.group(0)
    assert "Flavor" not in head.group(0)


def test_rows_in_motion_ask_again_and_others_do_not(browser: FlaskClient, api: Api, worker: TestWorker) -> None:
    made = api.post("/compute/instances", {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny"}).json["instance_id"]
    url = f"/compute/instances/rows/{made}"
    part = {"HX-Request": "true"}
    assert "data-poll" in browser.get(url, headers=part).text
    worker.drain()
    assert "data-poll" not in browser.get(url, headers=part).text
