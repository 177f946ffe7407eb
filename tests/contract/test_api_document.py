"""The OpenAPI document, the public routes and the role matrix: promises that change only on purpose."""

import json
import re

import jsonschema
import pytest
from flask import Flask

from portal.api.endpoints import Endpoint
from portal.http.guard import public_routes
from portal.kernel.authz import ROLES, role_matrix
from portal.kernel.resource import Registry
from tests.support.golden import same_as_golden


@pytest.fixture
def document(app: Flask) -> dict:
    return app.extensions["portal_api"][1]()


def test_the_document_is_the_one_that_was_reviewed(document: dict) -> None:
    same_as_golden("openapi.json", json.dumps(document, indent=1, sort_keys=True) + "\n")


def test_every_schema_is_one(document: dict) -> None:
    def walk(part: object) -> None:
        if isinstance(part, dict):
            if isinstance(part.get("schema"), dict):
                jsonschema.Draft202012Validator.check_schema(part["schema"])
            for inner in part.values():
                walk(inner)
        elif isinstance(part, list):
            for inner in part:
                walk(inner)

    walk(document["paths"])
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named <= set(document["components"]["schemas"])
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_every_route_of_the_api_is_documented_or_an_alias(app: Flask, document: dict) -> None:
    endpoints: list[Endpoint] = app.extensions["portal_api"][0]
    known = {(each.method, each.full_path) for each in endpoints} | {(each.method, alias) for each in endpoints for alias in each.aliases}
    routes = {
        (method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api")
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert routes - known == {("GET", "/api/v1/docs")}
    documented = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert documented == {(each.method, each.full_path) for each in endpoints}


def test_public_routes(app: Flask) -> None:
    same_as_golden("public_routes.txt", "\n".join(public_routes(app)) + "\n")


def test_roles(registry: Registry) -> None:
    matrix = role_matrix(list(registry.permissions), list(registry.permissions.values()))
    lines = [f"{action:40}" + "".join(f"{answers[role] or '-':>16}" for role in ROLES) for action, answers in sorted(matrix)]
    same_as_golden("roles.txt", "\n".join([f"{'':40}" + "".join(f"{role:>16}" for role in ROLES), *lines]) + "\n")
