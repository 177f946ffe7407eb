"""Objects in the console: folders, pages, uploads by plain forms, one object with its versions, links, copies, deletion of several."""

import io
import re
from collections.abc import Callable
from html import unescape

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from portal.http import security
from portal.settings import Settings
from portal.storage import removing
from portal.web import object_listing
from tests.support.s3 import S3, fetch
from tests.support.web import Api, csrf_of

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 40


class Site:
    """A bucket as a browser sees it."""

    def __init__(self, browser: FlaskClient, bucket_id: str) -> None:
        self.browser, self.base = browser, f"/storage/buckets/{bucket_id}"
        self.token = csrf_of(browser.get("/account"))

    def get(self, path: str = "", **query: str) -> TestResponse:
        """A page below the bucket's."""
        return self.browser.get(f"{self.base}{path}", query_string=query)

    def post(self, path: str, **form: object) -> TestResponse:
        """A form below it."""
        return self.browser.post(f"{self.base}{path}", data={"csrf_token": self.token, **form})

    def object(self, key: str, **more: str) -> str:
        """The text of an object's page."""
        answer = self.get("/object", key=key, **more)
        assert answer.status_code == 200, answer.text
        return unescape(answer.text)

    def names(self, **query: str) -> list[str]:
        """What the list shows."""
        return re.findall(r"<th scope=\"row\"[^>]*>.*?<bdi>(.*?)</bdi>", self.get(**query).text)


@pytest.fixture
def bucket(api: Api) -> str:
    """Its id."""
    return str(api.post("/storage/buckets", {"name": "a-bucket", "ownership": "ObjectWriter", "public_access": "allowed"}).json["id"])


@pytest.fixture
def put(api: Api, bucket: str) -> Callable[..., None]:
    """Write an object."""

    def write(key: str, body: bytes = b"x", **headers: str) -> None:
        answer = api("PUT", f"/storage/buckets/{bucket}/object?key={key}", data=body, headers={"Content-Type": "text/plain", **headers})
        assert answer.status_code == 200, answer.json

    return write


@pytest.fixture
def site(client_for: Callable[..., FlaskClient], bucket: str) -> Site:
    """The administrator's browser."""
    return Site(client_for(), bucket)


@pytest.fixture
def gateway(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the S3 interface is said to be."""
    monkeypatch.setitem(settings.__dict__, "s3_public_url", "http://s3.example.org")


def test_folders_are_walked_page_by_page(site: Site, put: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_listing, "SHOWN", 3)
    for key in ("a/1", "a/2", "a/b/3", "c", "d", "e", "<i>f</i>"):
        put(key)
    assert site.names() == ["&lt;i&gt;f&lt;/", "a/", "c"]
    following = re.search(r'href="([^"]+)" rel="next"', site.get().text)
    assert following is not None
    assert re.findall(r"<bdi>(\w+)</bdi></a>", site.browser.get(unescape(following.group(1))).text) == ["d", "e"]
    inside = site.get(prefix="a/")
    assert site.names(prefix="a/") == ["b/", "1", "2"]
    assert f'<a href="{site.base}">a-bucket</a>' in inside.text
    assert site.names(prefix="a/", starts="2") == ["2"]
    assert "Nothing here begins with" in site.get(starts="z").text
    assert site.get(prefix="x" * 1025).status_code == 400


def test_versions_are_listed_one_by_one(site: Site, put: Callable[..., None], api: Api, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_listing, "SHOWN", 2)
    for body in (b"one", b"two", b"three"):
        put("k", body)
    api("DELETE", f"/storage/buckets/{bucket}/object?key=k")
    first = site.get(versions="true")
    assert first.text.count("Newest") == 1
    assert "deleted" in first.text
    following = re.search(r'href="([^"]+)" rel="next"', first.text)
    assert following is not None
    second = site.browser.get(unescape(following.group(1)))
    assert (second.text.count("Newest"), second.text.count('name="ids"')) == (0, 2)


def test_files_are_sent_by_a_plain_form(site: Site, api: Api, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [(io.BytesIO(b"one"), "files/one.txt", "text/plain"), (io.BytesIO(b""), "empty", "text/plain")]
    assert site.post("/files", prefix="in/", files=files).headers["Location"] == f"{site.base}?prefix=in%2F"
    assert site.names(prefix="in/") == ["empty", "one.txt"]
    assert api.get(f"/storage/buckets/{bucket}/objects/in/one.txt").data == b"one"
    assert "choose at least one file" in site.post("/files", prefix="").text
    assert site.post("/folder", prefix="in/", name="deep").status_code == 303
    assert site.names(prefix="in/") == ["deep/", "empty", "one.txt"]
    assert site.names(prefix="in/deep/") == []
    assert site.post("/folder", prefix="in/", name="deep").status_code == 412
    monkeypatch.setattr(security, "MAX_FILES_BYTES", 1000)
    assert site.post("/files", prefix="", files=(io.BytesIO(b"x" * 1000), "large")).status_code == 413


def test_without_versions_nothing_is_written_over_unless_somebody_says_so(site: Site, api: Api, bucket: str, put: Callable[..., None]) -> None:
    api("PUT", f"/storage/buckets/{bucket}/versioning", {"enabled": False})
    put("k", b"first")
    assert site.post("/files", prefix="", files=(io.BytesIO(b"second"), "k")).status_code == 412
    assert api.get(f"/storage/buckets/{bucket}/objects/k").data == b"first"
    assert site.post("/files", prefix="", replace="true", files=(io.BytesIO(b"second"), "k")).status_code == 303
    assert api.get(f"/storage/buckets/{bucket}/objects/k").data == b"second"


def test_what_is_shown_of_bytes_can_do_nothing(site: Site, put: Callable[..., None]) -> None:
    put("page.html", b"<script>alert(1)</script>", **{"Content-Type": "image/png"})
    put("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", **{"Content-Type": "image/svg+xml"})
    put("a.png", PNG, **{"Content-Type": "text/html"})
    put("bytes", b"\xff\x00\x01")
    put("long", "ü".encode() * (40 << 10))
    for key in ("page.html", "a.svg", "bytes"):
        assert site.get("/object/image", key=key).status_code == 404
        assert "/object/image" not in site.object(key)
    assert "&lt;script&gt;alert(1)" in site.get("/object", key="page.html").text
    picture = site.get("/object/image", key="a.png")
    assert (picture.data, picture.headers["Content-Type"], picture.headers["Content-Disposition"]) == (
        PNG,
        "image/png",
        "inline; filename*=UTF-8''a.png",
    )
    assert picture.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert picture.headers["X-Content-Type-Options"] == "nosniff"
    assert "/object/image?key=a.png" in site.object("a.png")
    assert "neither a text nor a picture" in site.object("bytes")
    assert site.object("long").count("ü") == 32 << 10


def test_an_older_version_comes_back(site: Site, put: Callable[..., None], api: Api, bucket: str) -> None:
    for body in (b"one", b"two"):
        put("k", body)
    older = api.get(f"/storage/buckets/{bucket}/objects/k/versions").json["versions"][1]["version_id"]
    assert "Older version" in site.object("k", version_id=older)
    assert site.post("/object/restore", key="k", version_id=older).status_code == 303
    assert api.get(f"/storage/buckets/{bucket}/objects/k").data == b"one"
    site.post("/removal/now", ids="k:k")
    assert "It was deleted" in site.object("k")
    assert site.post("/object/restore", key="k", version_id=older).status_code == 303
    assert api.get(f"/storage/buckets/{bucket}/objects/k").data == b"one"
    assert "cannot be undone" in site.post("/removal", ids=f"v:{older}:k").text
    assert site.post("/removal/now", ids=f"v:{older}:k").status_code == 303
    assert older not in site.object("k")
    assert site.get("/object", key="nothing").status_code == 404


def test_what_is_said_of_an_object_is_changed(site: Site, put: Callable[..., None], api: Api, bucket: str) -> None:
    put("k", b"x")
    said = site.post("/object/say", key="k", metadata="Color=blue", tags="team=web\nenv=test", content_type="text/csv")
    assert said.status_code == 303
    assert api.get(f"/storage/buckets/{bucket}/objects/k").headers["X-Meta-Color"] == "blue"
    page = site.object("k")
    assert ("team=web" in page, 'value="text/csv"' in page) == (True, True)
    wrong = site.post("/object/say", key="k", metadata="no equals sign")
    assert (wrong.status_code, "Line 1 must be key=value." in wrong.text) == (422, True)
    assert site.post("/object/access", key="k", public="true").status_code == 303
    assert ">Public<" in site.object("k")
    assert site.post("/object/access", key="k", public="false").status_code == 303
    assert ">Public<" not in site.object("k")


def test_lists_of_access_are_offered_where_they_count(site: Site, put: Callable[..., None], api: Api, bucket: str) -> None:
    put("k")
    assert "Let everybody read it" in site.object("k")
    api("PUT", f"/storage/buckets/{bucket}/public-access-block", {"block_public_acls": True})
    assert "Let everybody read it" not in site.object("k")
    closed = str(api.post("/storage/buckets", {"name": "closed-bucket"}).json["id"])
    api("PUT", f"/storage/buckets/{closed}/objects/k", data=b"x")
    other = Site(site.browser, closed)
    assert ("Let everybody read it" in other.object("k"), "lists of access do not count" in other.object("k")) == (False, True)
    assert other.post("/object/access", key="k", public="true").status_code == 422


def test_a_version_is_kept_from_deletion(site: Site, put: Callable[..., None], api: Api, bucket: str) -> None:
    put("k")
    assert "Object lock" not in site.object("k")
    assert site.post("/settings", lock="true").status_code == 303
    assert site.post("/settings", lock="true", mode="GOVERNANCE", count="many").status_code == 422
    version = api.get(f"/storage/buckets/{bucket}/objects/k/versions").json["versions"][0]["version_id"]
    assert site.post("/object/lock", key="k", mode="GOVERNANCE", until="nonsense").status_code == 422
    assert site.post("/object/lock", key="k", mode="GOVERNANCE", until="2099-01-31").status_code == 303
    assert site.post("/object/lock", key="k", hold="true").status_code == 303
    assert "Kept until 2099-01-31 23:59:59 UTC (governance). There is a legal hold on it." in site.object("k")
    refused = site.post("/removal/now", ids=f"v:{version}:k")
    assert (refused.status_code, "legal hold" in refused.text) == (409, True)
    assert site.post("/object/lock", key="k", hold="false").status_code == 303
    assert site.post("/object/lock", key="k", mode="").status_code == 403
    assert site.post("/object/lock", key="k", mode="", bypass="true").status_code == 303
    assert site.post("/removal/now", ids=f"v:{version}:k").status_code == 303


def test_a_link_opens_an_object_for_whoever_has_it(site: Site, put: Callable[..., None], s3: S3, gateway: None) -> None:
    put("a file%2B.txt", b"shared")
    del gateway
    refused = site.post("/object/share", key="a file+.txt", expires_in="900")
    assert (refused.status_code, "access key of your own" in refused.text) == (409, True)
    # As scripts of a page ask the API: with the session, and the page's token.
    assert site.browser.post("/api/v1/auth/s3-keys", json={}).status_code == 400
    assert site.browser.post("/api/v1/auth/s3-keys", json={}, headers={"X-CSRFToken": site.token}).status_code == 201
    assert site.post("/object/share", key="a file+.txt", expires_in="1").status_code == 422
    shown = site.post("/object/share", key="a file+.txt", expires_in="900").text
    found = re.search(r'data-copy="(http[^"]+)"', shown)
    assert found is not None
    link = unescape(found.group(1))
    host, _, path = link.removeprefix("http://").partition("/")
    assert fetch(f"{s3.url}/{path}", headers={"Host": host})[::2] == (200, b"shared")


def test_copies_and_moves_write_over_nothing(site: Site, put: Callable[..., None], api: Api, bucket: str) -> None:
    other = api.post("/storage/buckets", {"name": "other-bucket"}).json["id"]
    put("k", b"kept", **{"X-Meta-Color": "blue"})
    put("there", b"there")
    assert site.post("/object/copy", key="k", way="copy", destination_key="there").status_code == 412
    assert site.post("/object/copy", key="k", way="copy", destination_key="k").status_code == 422
    assert "there is no bucket nowhere" in site.post("/object/copy", key="k", way="copy", destination_key="k", destination_bucket="nowhere").text
    assert site.post("/object/copy", key="k", way="copy", destination_key="there", replace="true").status_code == 303
    moved = site.post("/object/copy", key="k", way="move", destination_key="new/k", destination_bucket="other-bucket")
    assert moved.headers["Location"] == f"/storage/buckets/{other}/object?key=new%2Fk"
    found = api.get(f"/storage/buckets/{other}/objects/new/k")
    assert (found.data, found.headers["X-Meta-Color"]) == (b"kept", "blue")
    assert api.get(f"/storage/buckets/{bucket}/objects/k").status_code == 404


def test_several_are_deleted_after_a_look_at_what_goes(site: Site, put: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a/1", "a/2", "a/3", "b", "stays"):
        put(key, b"x" * 1000)
    ids = ["p:a/", "k:b"]
    looked = site.post("/removal", ids=ids).text
    assert "Delete 4 objects" in looked
    assert "3.9 KiB" in looked
    assert site.names() == ["a/", "b", "stays"]
    monkeypatch.setattr(removing, "AT_ONCE", 2)
    monkeypatch.setattr(removing, "COUNTED", 1)
    some = site.post("/removal/now", ids=ids)
    assert ("Go on" in some.text, "2 deleted" in some.text) == (True, True)
    monkeypatch.setattr(removing, "AT_ONCE", 100)
    assert site.post("/removal/now", ids=ids, prefix="a/").headers["Location"] == f"{site.base}?prefix=a%2F"
    assert site.names() == ["stays"]
    assert site.post("/removal").status_code == 400
    assert site.post("/removal", ids="x:y").status_code == 400


def test_nobody_sees_what_they_may_not_do(
    api_for: Callable[..., Api], client_for: Callable[..., FlaskClient], bucket: str, put: Callable[..., None]
) -> None:
    put("k", b"x")
    viewer = Site(client_for("viewer"), bucket)
    assert viewer.names() == ["k"]
    shown, page = viewer.get().text, viewer.object("k")
    for word in ("data-uploads", "Create folder", 'name="ids"', "/removal/"):
        assert word not in shown
    assert 'id="list-form"' in shown
    for word in ("/object/say", "/removal", "/object/access", "Restore", ">Move<", "New folder"):
        assert word not in page, word
    assert viewer.post("/files", prefix="", files=(io.BytesIO(b"x"), "l")).status_code == 403
    assert viewer.post("/object/say", key="k", metadata="", tags="").status_code == 403
    refused = viewer.post("/removal/now", ids="k:k")
    assert (refused.status_code, "Not deleted" in refused.text) == (409, True)
    developer = Site(client_for("developer"), bucket)
    assert "/object/access" not in developer.object("k")
    assert developer.post("/object/access", key="k", public="true").status_code == 403
    assert developer.post("/object/copy", key="k", way="move", destination_key="mine").status_code == 403
    assert developer.names() == ["k"]
    stranger = Site(client_for(""), bucket)
    for path, query in (("", {}), ("/object", {"key": "k"}), ("/object/image", {"key": "k"})):
        assert stranger.get(path, **query).status_code == 404
    assert stranger.post("/removal", ids="k:k").status_code == 404


def test_what_was_shown_is_what_is_changed(site: Site, put: Callable[..., None], api: Api, bucket: str) -> None:
    """Whoever fills a form in while somebody writes the object anew changes nothing of what they have not seen."""
    put("k", b"old")
    found = re.search(r'name="shown" value="(\d+)"', site.object("k"))
    assert found is not None
    put("k", b"new", **{"X-Meta-For": "new"})
    for path, form in (
        ("/object/say", {"metadata": "for=old", "tags": ""}),
        ("/object/access", {"public": "true"}),
        ("/object/lock", {"hold": "true"}),
    ):
        refused = site.post(path, key="k", shown=found[1], **form)
        assert (refused.status_code, "written over or deleted meanwhile" in refused.text) == (409, True), refused.status_code
    shown = api.get(f"/storage/buckets/{bucket}/object?key=k")
    assert (shown.headers["X-Meta-For"], shown.data) == ("new", b"new")
    again = re.search(r'name="shown" value="(\d+)"', site.object("k"))
    assert again is not None
    assert site.post("/object/say", key="k", shown=again[1], metadata="for=all", tags="").status_code == 303


def test_marks_that_turn_the_direction_of_a_name_are_shown(site: Site, put: Callable[..., None]) -> None:
    put("u%E2%80%AEgpj.exe")
    put("x" * 1000)
    assert site.names() == ["u⟨U+202E⟩gpj.exe", "x" * 1000]
    assert "u⟨U+202E⟩gpj.exe</bdi></h1>" in site.object("u\u202egpj.exe")
