"""What rules have let through: the worker reads it, the API tells it with its time, and nobody tells what was not counted."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from portal.engines.network_ports import Bound, Refusals
from portal.engines.ports import EngineError
from portal.kernel.audit import AuditEntry
from portal.kernel.db import now, transaction
from portal.kernel.events import Event
from portal.kernel.runner import TaskRun
from portal.networking.bounds import REACHED
from portal.networking.hits import read_rule_hits
from portal.networking.models import RuleHits
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.recording_network import RecordingNetwork
from tests.support.web import Api


@pytest.fixture
def task(people: People, worker: TestWorker) -> TaskRun:
    return TaskRun(people.context(None), worker.runner.engines)


@pytest.fixture
def vpc(api: Api, worker: TestWorker) -> dict[str, Any]:
    made: dict[str, Any] = api.post("/networking/vpcs", {"name": "net", "cidr_block": "10.0.0.0/16"}).json
    worker.drain()
    found: dict[str, Any] = api.get(f"/networking/vpcs/{made['id']}").json
    return found


def rules(api: Api, vpc: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get(f"/networking/security-groups/{vpc['default_group_id']}/rules").json["results"]
    return found


def test_connections_are_told_with_the_time_of_reading(api: Api, vpc: dict[str, Any], network: RecordingNetwork, task: TaskRun) -> None:
    assert {(rule["connections"], rule["connections_read_at"]) for rule in rules(api, vpc)} == {(None, None)}
    first, second = (rule["rule_id"] for rule in rules(api, vpc))
    network.hits = {first: 3_000_000_000}
    read_rule_hits(task)
    shown = {rule["rule_id"]: rule for rule in rules(api, vpc)}
    assert (shown[first]["connections"], shown[second]["connections"]) == (3_000_000_000, 0)
    assert abs((datetime.fromisoformat(shown[first]["connections_read_at"]) - now()).total_seconds()) < 10
    # A rule that is newer than the reading was not counted.
    added = api.post(f"/networking/security-groups/{vpc['default_group_id']}/rules", {"from_port": 22, "cidr": "10.0.0.0/8"}).json
    assert added["connections"] is None


def test_what_cannot_be_read_keeps_its_last_reading(
    api: Api, vpc: dict[str, Any], network: RecordingNetwork, task: TaskRun, caplog: pytest.LogCaptureFixture
) -> None:
    read_rule_hits(task)
    before = [rule["connections_read_at"] for rule in rules(api, vpc)]
    network.failures = [EngineError("nft: no such table")]
    read_rule_hits(task)
    assert [rule["connections_read_at"] for rule in rules(api, vpc)] == before
    assert "nft: no such table" in caplog.text


def test_readings_of_a_vpc_go_with_it(api: Api, vpc: dict[str, Any], task: TaskRun, worker: TestWorker) -> None:
    read_rule_hits(task)
    assert task.ctx.db.scalars(select(RuleHits.vpc_id)).all() == [vpc["id"]]
    assert api("DELETE", f"/networking/vpcs/{vpc['id']}?force=true").status_code in (202, 204)
    worker.drain()
    read_rule_hits(task)
    assert task.ctx.db.scalars(select(RuleHits.vpc_id)).all() == []


def reached(task: TaskRun) -> list[dict[str, Any]]:
    task.ctx.db.rollback()
    return [dict(payload) for payload in task.ctx.db.scalars(select(Event.payload).where(Event.type == REACHED).order_by(Event.id))]


def test_a_bound_that_is_reached_is_counted_and_told_once_an_hour(api: Api, vpc: dict[str, Any], network: RecordingNetwork, task: TaskRun) -> None:
    network.refused = Refusals({Bound.CALLER: 7, Bound.CALLED: 0}, {Bound.CALLER: ["10.0.1.5"]})
    for _ in range(2):
        read_rule_hits(task)
    assert reached(task) == [{"address": "10.0.1.5", "bound": "caller", "limit": 1024}]
    assert len(task.ctx.db.scalars(select(AuditEntry).where(AuditEntry.action == REACHED, AuditEntry.resource_id == vpc["id"])).all()) == 1
    text = api.client.get("/metrics").get_data(as_text=True)
    assert 'portal_network_bound_refusals{bound="caller"} 7.0' in text
    assert 'portal_network_bound_refusals{bound="begun"} 0.0' in text
    network.refused = Refusals({Bound.CALLER: 9, Bound.BEGUN: 2}, {Bound.CALLER: ["10.0.1.5"], Bound.BEGUN: ["10.0.1.6"]})
    read_rule_hits(task)
    assert [each["address"] for each in reached(task)] == ["10.0.1.5", "10.0.1.6"], "each address is told of"
    with transaction(task.ctx.db):
        task.ctx.db.execute(update(Event).where(Event.type == REACHED).values(at=now() - timedelta(hours=2)))
    read_rule_hits(task)
    assert [each["address"] for each in reached(task)] == ["10.0.1.5", "10.0.1.6"] * 2, "after an hour, once more"
