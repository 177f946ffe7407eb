"""How many queries a page or an endpoint sends: written down, and the same however many rows there are."""

import json
import os
from collections.abc import Callable
from datetime import timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update

from portal.http.guard import Access
from portal.identity import accounts, tokens
from portal.kernel.db import db
from portal.kernel.quota import Quota
from portal.kernel.resource import Registry
from tests.support.draining import TestWorker
from tests.support.golden import same_as_golden
from tests.support.web import Api, Queries, one_of_each

PAGES = (
    "/",
    "/jobs",
    "/audit",
    "/quotas",
    "/quotas/requests",
    "/alerts",
    "/account",
    "/projects",
    "/users",
    "/security/simulator",
    "/security/unused",
    "/search?q=row",
    "/tray",
)


def fill(api: Api, worker: TestWorker, numbers: range) -> dict[str, str]:
    """Rows of every type with these numbers in their names; the last of each."""
    last: dict[str, str] = {}
    for number in numbers:
        last = one_of_each(api, worker.drain, f"row-{number}")
    return last


@pytest.mark.skipif(os.environ.get("TEST_DATABASE") == "postgresql", reason="the same statements on both databases: counted on SQLite")
def test_queries_are_counted_and_do_not_grow(
    app: Flask, client_for: Callable[..., FlaskClient], api_for: Callable[..., Api], worker: TestWorker, registry: Registry, *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # That a session or a token was seen is noted once a minute: on a slow machine while something is counted.
    for module in (accounts, tokens):
        monkeypatch.setattr(module, "SEEN_EVERY", timedelta(days=1))
    browser, api = client_for("platform_admin"), api_for("platform_admin")
    with app.app_context():
        queries = Queries(db.engine)
        db.session.execute(update(Quota).values(limit=1000))
        db.session.commit()

    def count_all(last: dict[str, str]) -> dict[str, int]:
        found = {}
        paths = {path: path for path in PAGES}
        for rtype in registry:
            base = f"/{rtype.service}/{rtype.collection}"
            paths |= {base: base, f"{base}/<id>": f"{base}/{last[rtype.key]}", f"{base}/<id>/activity": f"{base}/{last[rtype.key]}/activity"}
            paths[f"{base}/<id>/actions/update"] = f"{base}/{last[rtype.key]}/actions/update"
            if rtype.key not in {"compute.flavor", "storage.volume_type"} or browser.get(f"{base}/new").status_code == 200:
                paths[f"{base}/new"] = f"{base}/new"
        for name, path in paths.items():
            browser.get(path)
            with queries:
                assert browser.get(path).status_code == 200, path
            found[f"page {name}"] = queries.count
        for endpoint in app.extensions["portal_api"][0]:
            if endpoint.method != "GET" or "{" in endpoint.path or endpoint.rule is Access.PUBLIC or any(each.required for each in endpoint.query):
                continue
            with queries:
                assert api("GET", endpoint.full_path).status_code == 200, endpoint.full_path
            found[f"GET {endpoint.full_path}"] = queries.count
        for rtype in registry:
            path = f"/{rtype.service}/{rtype.collection}"
            with queries:
                assert api.get(f"{path}/{last[rtype.key]}").status_code == 200
            found[f"GET /api/v1{path}/<id>"] = queries.count
        return found

    few = count_all(fill(api, worker, range(2)))
    many = count_all(fill(api, worker, range(2, 14)))
    assert few == many
    same_as_golden("query_counts.json", json.dumps(few, indent=1, sort_keys=True) + "\n")
