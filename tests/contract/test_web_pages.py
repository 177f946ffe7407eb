"""Pages of the console, derived from the registry: as every role, as a stranger, as somebody from another project."""

import re
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient

from portal.http.guard import Access, rule_of
from portal.kernel.authz import ROLES
from portal.kernel.declare import Effect
from portal.kernel.resource import Registry, ResourceType, Tenancy
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, csrf_of, one_of_each

EVERYBODY = [*ROLES, ""]
PLACES = ("/", "/jobs", "/audit", "/quotas", "/account", "/account/password", "/projects", "/users", "/search?q=tiny", "/tray", "/api/v1/docs")


def paths_of(rtype: ResourceType, row_id: str) -> list[str]:
    """Every page about a row that can be read."""
    base = f"/{rtype.service}/{rtype.collection}"
    verbs = [op.verb for op in rtype.operations if op.effect is not Effect.CREATE and not op.internal]
    return [f"{base}/{row_id}", f"{base}/rows/{row_id}", f"{base}/{row_id}/activity", *(f"{base}/{row_id}/actions/{verb}" for verb in verbs)]


@pytest.fixture
def rows(api_for: Callable[..., Api], worker: TestWorker) -> dict[str, str]:
    """One row of every type, in the default project."""
    return one_of_each(api_for("project_admin"), worker.drain, "the-first")


def test_every_type_is_tried(registry: Registry, rows: dict[str, str]) -> None:
    assert {rtype.key for rtype in registry} == set(rows)


@pytest.mark.parametrize("role", EVERYBODY)
def test_no_page_fails_for_a_role(role: str, client_for: Callable[..., FlaskClient], registry: Registry, rows: dict[str, str]) -> None:
    browser = client_for(role)
    for path in PLACES:
        assert browser.get(path).status_code in {200, 403, 404, 400}, path
    for rtype in registry:
        base = f"/{rtype.service}/{rtype.collection}"
        # Who is a member of no project sees nothing of one, but may look at what everybody shares.
        hidden = role == "" and rows[rtype.key] not in {"t3-micro", "vt-ssd"}
        assert browser.get(base).status_code == 200
        assert browser.get(f"{base}.csv").status_code == 200
        assert browser.get(f"{base}/new").status_code in {200, 404}
        for path in paths_of(rtype, rows[rtype.key]):
            assert browser.get(path).status_code == (404 if hidden else 200), path
    for tab, roles in (("console", {"platform_admin", "project_admin", "developer"}), ("metrics", set(ROLES))):
        answer = browser.get(f"/compute/instances/{rows['compute.instance']}/{tab}")
        assert answer.status_code == (200 if role in roles else 404), tab


def test_strangers_are_shown_the_way_in(app: Flask, registry: Registry) -> None:
    client = app.test_client()
    for route in app.url_map.iter_rules():
        if rule_of(app, route.endpoint) is Access.PUBLIC or route.rule.startswith(("/api", "/ws")):
            continue
        path = re.sub(r"<[^>]+>", "something", route.rule)
        for method in route.methods & {"GET", "POST"}:
            answer = client.open(path, method=method)
            if method == "GET":
                assert (answer.status_code, answer.location.startswith("/login")) == (303, True), path
            else:
                assert answer.status_code == 401, path
                assert "Sign in first." in answer.text


def test_strangers_forms_are_not_parsed(app: Flask) -> None:
    class Untouched:
        """A body that nobody may read."""

        def read(self, *_: object) -> bytes:
            raise AssertionError("the body was read")

        readline = readinto = read

    head = {"CONTENT_LENGTH": "1000000", "wsgi.input": Untouched()}
    for path, kind in (("/compute/images/ami-1/upload", "application/octet-stream"), ("/compute/instances/new", "multipart/form-data; boundary=x")):
        answer = app.test_client().post(path, content_type=kind, environ_overrides=head)
        assert answer.status_code == 401
    answer = app.test_client().post("/compute/images/ami-1/upload", content_type="multipart/form-data; boundary=x", environ_overrides=head)
    assert answer.status_code == 415


def test_another_projects_pages_are_not_there(
    client_for: Callable[..., FlaskClient], people: People, registry: Registry, rows: dict[str, str], api_for: Callable[..., Api]
) -> None:
    other = client_for("project_admin", people.project())
    token = csrf_of(other.get("/"))
    for rtype in registry:
        if rtype.tenancy is Tenancy.PLATFORM:
            continue
        base = f"/{rtype.service}/{rtype.collection}"
        assert "the-first" not in other.get(base).text
        assert "the-first" not in other.get(f"{base}?all_projects=true").text
        assert "the-first" not in other.get(f"{base}.csv?all_projects=true").text
        for path in paths_of(rtype, rows[rtype.key]):
            assert other.get(path).status_code == 404, path
            assert other.post(path, data={"csrf_token": token, "confirm": "the-first", "name": "mine"}).status_code in {404, 405}, path
    assert "the-first" not in other.get("/search?q=first").text
    assert "the-first" not in other.get("/audit").text
    assert "the-first" not in other.get("/audit/export.jsonl").text
    assert "the-first" not in other.get("/jobs").text
    assert api_for().get(f"/compute/instances/{rows['compute.instance']}").json["status"] == "running"


def test_what_may_not_be_done_says_why(client_for: Callable[..., FlaskClient], rows: dict[str, str]) -> None:
    viewer = client_for("viewer")
    page = viewer.get(f"/compute/instances/{rows['compute.instance']}").text
    assert 'aria-disabled="true"' in page
    assert "Viewer" in page
    answer = viewer.post(
        f"/compute/instances/{rows['compute.instance']}/actions/stop", data={"csrf_token": csrf_of(viewer.get("/"))}
    )  # fmt: skip
    assert answer.status_code == 403
    assert "compute.instance.stop" in answer.text


def test_pages_carry_no_inline_script_or_style(client_for: Callable[..., FlaskClient], rows: dict[str, str], registry: Registry) -> None:
    browser = client_for("platform_admin")
    seen = [
        *PLACES,
        *(path for rtype in registry for path in paths_of(rtype, rows[rtype.key])),
        f"/compute/instances/{rows['compute.instance']}/metrics",
    ]
    for path in seen:
        text = browser.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=\"|javascript:", text), path


def test_names_are_shown_not_run(api: Api, client_for: Callable[..., FlaskClient]) -> None:
    nasty = '<img src=x onerror="alert(1)">&{{7*7}}'
    made = api.post("/compute/images", {"name": nasty, "tags": {"<b>": "</td>"}}).json["id"]
    browser = client_for("platform_admin")
    for path in ("/compute/images", f"/compute/images/{made}", f"/compute/images/{made}/actions/update", f"/compute/images/{made}/actions/delete", "/",
                 "/search?q=img", "/audit", "/jobs"):  # fmt: skip
        text = browser.get(path).text
        assert "<img src=x" not in text, path
        assert "&amp;49" not in text, path
    assert "&lt;img src=x" in browser.get("/compute/images").text


def test_a_page_that_is_not_there(client_for: Callable[..., FlaskClient]) -> None:
    browser = client_for()
    for path in (
        "/nothing",
        "/compute/nothing",
        "/compute/instances/i-none",
        "/compute/instances/i-none/console",
        "/jobs/job-none",
        "/projects/prj-none",
    ):
        answer = browser.get(path)
        assert answer.status_code == 404
        assert "There is nothing here" in answer.text
    part = browser.get("/compute/instances/i-none", headers={"HX-Request": "true"})
    assert (part.status_code, part.headers["HX-Retarget"]) == (404, "#toasts")
    assert browser.post("/search").status_code == 400
