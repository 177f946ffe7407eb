"""The console's list of objects on both engines: the same is found, read, written and deleted; what an external engine is not asked for is said."""

from collections.abc import Callable
from html import unescape
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask.testing import FlaskClient

from tests.support.object_engines import BUCKETS, Place
from tests.support.s3 import fetch
from tests.support.web import browser as signed_in
from tests.support.web import csrf_of


@pytest.fixture
def browser(place: Place) -> FlaskClient:
    return signed_in(place.app, place.people, place.people.user("project_admin"))


@pytest.fixture
def send(browser: FlaskClient) -> Callable[..., tuple[int, str]]:
    token = csrf_of(browser.get("/account"))

    def post(path: str, **form: Any) -> tuple[int, str]:
        answer = browser.post(path, data={"csrf_token": token, **form}, content_type="multipart/form-data")
        return answer.status_code, unescape(answer.text)

    return post


@pytest.fixture
def page(place: Place) -> str:
    """The page of a bucket with a folder of 101 objects and one beside it."""
    bucket = f"{BUCKETS}/{place.bucket('of-the-console')}"
    for number in range(101):
        place.api("PUT", f"{bucket}/objects/folder/k{number:03}", data=b"x" * 10, headers={"Content-Type": "text/plain"})
    place.api("PUT", f"{bucket}/objects/a <b>.txt", data=b"of a", headers={"Content-Type": "text/html"})
    return bucket


def test_folders_and_pages(page: str, browser: FlaskClient) -> None:
    text = unescape(browser.get(page).text)
    assert ("<bdi>folder/</bdi>" in text, "<bdi>a <b>.txt</bdi>" in text, "1 folder, 1 object, 4 B on this page" in text) == (True, True, True)
    text = browser.get(f"{page}?prefix=folder/").text
    assert (text.count("<bdi>k0"), "100 objects, 1000 B" in text, 'rel="next"' in text) == (100, True, True)
    following = unescape(text.split('rel="next"')[0].rpartition('href="')[2].split('"')[0])
    text = browser.get(following).text
    assert (text.count("<bdi>k1"), 'rel="next"' in text) == (1, False)
    assert browser.get(f"{page}?starts=fol").text.count("<bdi>folder/") == 1


def test_what_is_sent_is_there(place: Place, page: str, browser: FlaskClient, send: Callable[..., tuple[int, str]]) -> None:
    assert send(f"{page}/files", prefix="new/", files=(BytesIO(b"sent by a form"), "one.txt", "text/plain"))[0] == 303
    assert place.api.get(f"{page}/objects/new/one.txt").data == b"sent by a form"
    assert send(f"{page}/folder", prefix="new/", name="inner")[0] == 303
    assert "<bdi>inner/</bdi>" in browser.get(f"{page}?prefix=new/").text
    assert send(f"{page}/folder", prefix="new/", name="inner")[0] == 412


def test_bytes_come_from_where_they_are(place: Place, page: str, browser: FlaskClient) -> None:
    text = browser.get(page).text
    link = unescape(text.split('aria-label="Download a')[0].rpartition('href="')[2].split('"')[0])
    answer = browser.get(link)
    if place.is_local:
        assert answer.data == b"of a"
        assert browser.get(f"{page}/engine/object?key=a").status_code == 404
        return
    assert (answer.status_code, answer.location.startswith(place.url)) == (303, True)
    status, headers, body = fetch(answer.location)
    assert (status, body, headers["Content-Disposition"]) == (200, b"of a", "attachment; filename*=UTF-8''a%20%3Cb%3E.txt")
    assert parse_qs(urlsplit(answer.location).query)["X-Amz-Expires"] == ["60"]
    stranger = signed_in(place.app, place.people, place.people.user("developer", place.people.project()))
    assert stranger.get(link).status_code == 404


def test_deletion_after_a_look_at_what_goes(place: Place, page: str, send: Callable[..., tuple[int, str]]) -> None:
    chosen = ["p:folder/", "k:a <b>.txt", "k:gone"]
    status, text = send(f"{page}/removal", ids=chosen)
    assert (status, "102 objects" in text, "Is gone already" in text, "1014 B" in text) == (200, True, True, True)
    assert send(f"{page}/removal/now", ids=chosen)[0] == 303
    assert place.api.get(f"{page}/objects").json["objects"] == []
    viewer = signed_in(place.app, place.people, place.people.user("viewer"))
    token = csrf_of(viewer.get("/account"))
    place.api("PUT", f"{page}/objects/kept", data=b"x")
    refusal = viewer.post(f"{page}/removal/now", data={"csrf_token": token, "ids": "k:kept"})
    assert (refusal.status_code, "Not deleted" in refusal.text) == (409, True)
    assert place.api.get(f"{page}/objects/kept").data == b"x"


def test_settings_say_what_the_engine_is_not_asked_for(place: Place, page: str, browser: FlaskClient, send: Callable[..., tuple[int, str]]) -> None:
    text = browser.get(f"{page}/settings").text
    names = (
        "Encryption</h2>",
        "Access log</h2>",
        "Object lock</h2>",
        "Website</h2>",
        "Notifications</h2>",
        "Replication</h2>",
        "Empty the bucket</h2>",
    )
    assert [name in text for name in names] == [place.is_local] * len(names)
    assert ("on which the portal manages no encryption" in text, "Life of objects" in text, "Versions</h2>" in text) == (
        not place.is_local,
        True,
        True,
    )
    if not place.is_local:
        assert send(f"{page}/settings", encryption="sse-s3")[0] == 503
        assert send(f"{page}/settings/website/check", document="{}")[0] == 404


def test_who_may_delete_what_is_their_own_signs_no_deletion_of_what_is_anothers(place: Place, page: str) -> None:
    developer = place.people.user("developer")
    api = place.api_of(developer)
    assert api.post("/auth/s3-keys", {}).status_code == 201
    asked = {"key": "folder/k000", "method": "DELETE"}
    assert api.post(f"{page}/presigned-urls", asked).status_code == 403
    # Where nobody knows whose an object is, none is theirs for sure.
    assert api.post(f"{page}/presigned-urls", {**asked, "key": "not-there"}).status_code == (200 if place.is_local else 403)
    assert api.post(f"{page}/presigned-urls", {**asked, "method": "PUT", "key": "not-there"}).status_code == 200
