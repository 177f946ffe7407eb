"""Requests that fit the OpenAPI document and requests that do not: never a 5xx, never an answer that the document does not promise."""

from collections.abc import Callable
from itertools import count

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from tests.support.draining import TestWorker
from tests.support.web import Api

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES, PARTS = 4, 4
ROLES = ("platform_admin", "project_admin")
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.fixture
def known(api_for: Callable[..., Api], worker: TestWorker) -> dict[str, str]:
    """Path parameter → something that is there."""
    owner = api_for("project_admin")
    made = owner.post("/compute/instances", {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny", "tags": {"a": "b"}}).json
    key = owner.post("/compute/key-pairs", {"name": "key-1"}).json["id"]
    worker.drain()
    project = owner.get("/auth/me").json["current_project_id"]
    return {
        "instance_id": made["instance_id"], "job_id": made["job_id"], "key_pair_id": key, "image_id": "atonix-tiny", "flavor_id": "t3-micro",
        "project_id": project, "user_id": owner.user.id,
    }  # fmt: skip


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "unfitting"])
@pytest.mark.parametrize("part", range(PARTS))
def test_every_answer_is_a_documented_one(app: Flask, api_for: Callable[..., Api], known: dict[str, str], mode: GenerationMode, part: int) -> None:
    schema = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app)
    problems = []
    for number, found in enumerate(schema.get_all_operations()):
        operation = found.ok()
        # Any text can be an id, and any bytes a file: only JSON and query strings can fail to fit.
        can_be_wrong = operation.query or any(each.media_type == "application/json" for each in operation.body)
        if number % PARTS != part or (mode is GenerationMode.NEGATIVE and not can_be_wrong):
            continue
        try:
            attempt(operation, mode, known, api_for(ROLES[number % len(ROLES)], known["project_id"]).token)
        except FailureGroup as group:
            problems.append(f"{operation.label}: {group}" + "".join(f"\n{each}" for each in group.exceptions))
    assert not problems, "\n\n".join(problems)


def attempt(operation: APIOperation, mode: GenerationMode, known: dict[str, str], token: str) -> None:
    """Some requests to one operation; half of them are about something that is there."""
    calls = count()

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=SLOW)
    @given(case=operation.as_strategy(generation_mode=mode))
    def once(case: Case) -> None:
        if case.path_parameters and next(calls) % 2:
            case.path_parameters.update({name: value for name, value in known.items() if name in case.path_parameters})
        case.call_and_validate(headers={"Authorization": f"Token {token}"}, checks=CHECKS)

    once()
