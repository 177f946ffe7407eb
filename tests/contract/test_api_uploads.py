"""Uploads in parts that have not ended, as whoever goes on with them sees them; and what may be said of objects."""

from collections.abc import Callable

import pytest

from tests.support.web import Api

BASE = "/storage/buckets"


@pytest.fixture
def bucket(api: Api) -> str:
    """Its id."""
    return str(api.post(BASE, {"name": "a-bucket"}).json["id"])


def test_whoever_goes_on_learns_what_has_arrived(api: Api, bucket: str) -> None:
    here = f"{BASE}/{bucket}/multipart-uploads"
    first = api.post(here, {"key": "videos/one"}).json["upload_id"]
    second = api.post(here, {"key": "other"}).json["upload_id"]
    for number, body in ((3, b"x" * 30), (1, b"y" * 10)):
        assert api("PUT", f"{here}/{first}/parts/{number}", data=body).status_code == 200
    found = api.get(f"{here}/{first}").json
    assert (found["upload_id"], found["key"]) == (first, "videos/one")
    assert [(each["number"], each["size_bytes"], len(each["etag"])) for each in found["parts"]] == [(1, 10, 32), (3, 30, 32)]
    assert [each["upload_id"] for each in api.get(here).json["uploads"]] == [second, first]
    assert [each["key"] for each in api.get(f"{here}?prefix=videos/").json["uploads"]] == ["videos/one"]
    one = api.get(f"{here}?limit=1").json
    assert (len(one["uploads"]), one["is_truncated"]) == (1, True)
    assert api("DELETE", f"{here}/{first}").status_code == 204
    assert api.get(f"{here}/{first}").status_code == 404
    assert api.get(f"{here}?limit=0").status_code == 400


def test_uploads_of_a_bucket_are_for_those_who_may_write(api: Api, api_for: Callable[..., Api], bucket: str) -> None:
    here = f"{BASE}/{bucket}/multipart-uploads"
    upload = api.post(here, {"key": "k"}).json["upload_id"]
    assert api_for("viewer").get(f"{here}/{upload}").status_code == 403
    assert api_for("").get(here).status_code == 404
    assert api_for("").get(f"{here}/{upload}").status_code == 404


@pytest.mark.parametrize(
    "said",
    [
        {"metadata": {"a b": "c"}}, {"metadata": {"a": "line\nline"}}, {"metadata": {"a": "snow \u2603"}}, {"metadata": {"a": "x" * 3000}}, {"metadata": {"": "x"}},
        {"tags": {str(number): "" for number in range(11)}}, {"tags": {"": "x"}}, {"tags": {"a": "x" * 257}}, {"content_type": "text/plain\r\nSet-Cookie: a=b"},
    ],
)  # fmt: skip
def test_what_no_header_can_carry_is_refused_before_it_is_kept(api: Api, bucket: str, said: dict[str, object]) -> None:
    """It was kept, and the object could not be read any more."""
    assert api("PUT", f"{BASE}/{bucket}/objects/k", data=b"x").status_code == 200
    refused = api("PATCH", f"{BASE}/{bucket}/objects/k", said)
    assert (refused.status_code, next(iter(said))) == (400, next(iter(refused.json["details"]))), refused.json
    assert api.get(f"{BASE}/{bucket}/objects/k").data == b"x"
    if "tags" not in said:
        assert api.post(f"{BASE}/{bucket}/multipart-uploads", {"key": "l", **said}).status_code == 400
