"""Buckets in the console."""

from collections.abc import Callable

from flask.testing import FlaskClient

from tests.support.web import Api, csrf_of


def test_who_builds_makes_a_bucket_by_the_form(api: Api, client_for: Callable[..., FlaskClient]) -> None:
    browser, path = client_for("developer"), "/storage/buckets/new"
    form = {
        "csrf_token": csrf_of(browser.get(path)),
        "name": "by-form",
        "acl": "private",
        "ownership": "BucketOwnerEnforced",
        "public_access": "default",
    }
    answer = browser.post(path, data=form)
    assert answer.status_code == 303, answer.text
    made = next(each for each in api.get("/storage/buckets").json["results"] if each["name"] == "by-form")
    assert (made["object_lock"], made["ownership"]) == (False, "BucketOwnerEnforced")
    assert api.get(f"/storage/buckets/{made['id']}/public-access-block").json["block_public_policy"] is True
    answer = browser.post(path, data={**form, "name": "another", "public_access": "allowed"})
    assert (answer.status_code, "set_public_access" in answer.text) == (403, True), answer.text
