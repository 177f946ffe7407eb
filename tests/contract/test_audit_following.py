"""Following the audit log: what comes is shown on top, without what was shown before; and lists that say how much there is."""

import re
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from portal.kernel import audit_query
from portal.kernel.audit import Subject, record
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.web import audit as pages
from tests.support.people import People
from tests.support.web import Api

ASKING = re.compile(r'hx-get="(/audit/newer[^"]*)"')


def write(ctx: Context, *names: str) -> None:
    with transaction(ctx.db):
        for name in names:
            record(ctx, "test.thing.do", Subject("test.thing", f"t-{name}", name, ctx.project_id))


@pytest.fixture
def doing(people: People) -> Context:
    """Somebody who does things."""
    return people.context(people.user("developer"))


def asked(text: str) -> str:
    """Where a page asks for what comes next."""
    (found,) = ASKING.findall(text)
    return found.replace("&amp;", "&")


def test_who_follows_sees_what_comes_and_nothing_twice(doing: Context, client_for: Callable[..., FlaskClient]) -> None:
    write(doing, "first")
    client = client_for("auditor")
    page = client.get("/audit?action=test.*").text
    assert (ASKING.findall(page), "follow=1" in page) == ([], True)
    page = client.get("/audit?action=test.*&follow=1").text
    assert ("first" in page, "Stop following" in page) == (True, True)
    first = asked(page)
    nothing = client.get(first)
    assert (nothing.status_code, nothing.text) == (204, "")
    write(doing, "second", "third")
    came = client.get(first)
    assert (came.status_code, "first" in came.text, came.text.index("third") < came.text.index("second")) == (200, False, True)
    assert "<html" not in came.text
    following = asked(came.text)
    assert client.get(following).status_code == 204
    assert "action=test." in following
    client_for("viewer").get("/audit")
    assert client.get(following).status_code == 204


def test_where_more_came_than_is_shown_a_way_to_the_rest_is(
    doing: Context, client_for: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST_NEWER", 2)
    client = client_for("auditor")
    first = asked(client.get("/audit?action=test.*&follow=1").text)
    write(doing, "one", "two")
    assert "More came" not in client.get(first).text
    write(doing, "three", "four")
    came = client.get(first).text
    assert [name in came for name in (">one<", ">two<", ">three<", ">four<", "More came")] == [False, False, True, True, True]
    (rest,) = re.findall(r'href="(/audit\?[^"#]*cursor=\d+)"', came)
    page = client.get(rest.replace("&amp;", "&")).text
    assert [">one<" in page, ">two<" in page, ">three<" in page] == [True, True, False]


def test_an_empty_list_can_be_followed(doing: Context, client_for: Callable[..., FlaskClient]) -> None:
    client = client_for("auditor")
    first = asked(client.get("/audit?resource_id=t-late&follow=1").text)
    write(doing, "late")
    assert "late" in client.get(first).text


def test_what_is_over_is_not_followed(doing: Context, client_for: Callable[..., FlaskClient]) -> None:
    client = client_for("auditor")
    write(doing, "x")
    for path in ("/audit?until=2020-01-01&follow=1", "/audit?cursor=1&follow=1"):
        page = client.get(path).text
        assert (ASKING.findall(page), "Follow" in page) == ([], False), path
    over = client.get("/audit/newer?until=2020-01-01&after=0")
    assert (over.status_code, ASKING.findall(over.text)) == (200, [])
    assert client.get("/audit/newer?after=x").status_code == 400


def test_nobody_follows_what_they_may_not_read(doing: Context, client_for: Callable[..., FlaskClient]) -> None:
    client = client_for("viewer")
    first = asked(client.get("/audit?follow=1").text)
    write(doing, "hidden")
    assert "hidden" not in client.get(first).text


def test_the_count_is_the_same_on_each_page_and_ends_somewhere(doing: Context, api_for: Callable[..., Api], monkeypatch: pytest.MonkeyPatch) -> None:
    write(doing, "a", "b", "c", "d", "e")
    api = api_for("auditor")
    path, counts = "/security/audit-logs?action=test.*&limit=2", []
    while path:
        page = api.get(path.removeprefix("http://localhost").removeprefix("/api/v1")).json
        counts.append((page["count"], len(page["results"])))
        path = page["next"] or ""
    assert counts == [(5, 2), (5, 2), (5, 1)]
    assert audit_query.COUNTED == 1000
    assert "1,000" in api.get("/openapi.json").text
