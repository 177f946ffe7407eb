"""Probes and metrics, in the shapes of the service standards."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from portal.http import probes
from portal.http.exporter import ProcessTree, collect
from portal.kernel.capabilities import CapabilityStatus
from portal.kernel.db import now, transaction
from tests.support.tree import VERSION

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def recent(text: str) -> bool:
    return MOMENT.fullmatch(text) is not None and datetime.now(UTC) - datetime.fromisoformat(text) < timedelta(minutes=1)


@pytest.mark.parametrize("path", ["/health", "/healthz"])
def test_health_has_the_standard_body(app: Flask, path: str) -> None:
    answer = app.test_client().get(path)
    body = answer.get_json()
    assert answer.status_code == 200
    assert (body["status"], body["service"], body["version"], recent(body["timestamp"])) == ("healthy", "atonix-portal", VERSION, True)
    assert body["checks"]["database"] == {"status": "ok", "message": "Database connection OK"}
    assert set(body["checks"]["resources"]) == {"cpu_percent", "memory_percent"}


def test_ready_has_the_standard_body_and_the_capabilities(app: Flask) -> None:
    answer = app.test_client().get("/ready")
    body = answer.get_json()
    assert (answer.status_code, body["ready"], body["service"], recent(body["timestamp"])) == (200, True, "atonix-portal", True)
    assert body["checks"]["database"]["status"] == "ok"
    assert body["checks"]["disk_space"]["percent_used"] > 0
    assert body["checks"]["capabilities"]["compute"]["status"] == "ok"


def test_a_missing_or_silent_engine_is_said_and_traffic_still_comes(app: Flask, database: sessionmaker[Session]) -> None:
    for values, status in (
        ({"available": False, "reason": "no QEMU", "remedy": "apt install qemu"}, "unavailable"),
        ({"available": True, "reported_at": now() - timedelta(minutes=5)}, "stale"),
    ):
        with database() as session, transaction(session):
            session.execute(update(CapabilityStatus).values(**values))
        answer = app.test_client().get("/ready")
        found = answer.get_json()["checks"]["capabilities"]["compute"]
        assert (answer.status_code, found["status"]) == (200, status)
    assert found["remedy"] == "apt install qemu"


def broken(*_args: Any, **_kwargs: Any) -> None:
    raise OSError("password=SECRET at /var/lib/secret")


def test_without_a_database_it_is_alive_but_not_ready(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.db.session, "execute", broken)
    client = app.test_client()
    alive, ready = client.get("/health"), client.get("/ready")
    assert (alive.status_code, alive.get_json()["status"]) == (200, "degraded")
    assert (ready.status_code, ready.get_json()["ready"], ready.get_json()["checks"]["database"]["status"]) == (503, False, "error")
    assert "SECRET" not in alive.get_data(as_text=True) + ready.get_data(as_text=True)


def test_a_full_disk_is_not_ready(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.psutil, "disk_usage", lambda _path: type("Usage", (), {"percent": 99.5})())
    answer = app.test_client().get("/ready")
    assert (answer.status_code, answer.get_json()["checks"]["disk_space"]) == (503, {"status": "error", "percent_used": 99.5})


def test_metrics_have_the_standard_names(app: Flask) -> None:
    client = app.test_client()
    client.get("/health")
    client.get("/api/v1/nonesuch/secret-id-12345")
    client.open("/health", method="PROPFIND")
    answer = client.get("/metrics")
    text = answer.get_data(as_text=True)
    assert answer.content_type.startswith("text/plain; version=")
    for name in ("http_requests_total", "http_request_duration_seconds_bucket", "http_requests_active", "http_errors_total", "portal_jobs"):
        assert re.search(rf"^{name}\b", text, re.MULTILINE), name
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total"):
        assert name in text
    assert re.search(r'http_requests_total\{endpoint="/health",method="GET",status="200"\} [1-9]', text)
    # Labels are routes, never what somebody typed: else a scanner fills the memory.
    assert "secret-id-12345" not in text
    assert "PROPFIND" not in text


def test_a_request_is_active_until_its_body_is_sent(app: Flask) -> None:
    before = probes.ACTIVE_REQUESTS._value.get()
    answer = app.test_client().get("/health", buffered=False)
    assert probes.ACTIVE_REQUESTS._value.get() == before + 1
    answer.close()
    assert probes.ACTIVE_REQUESTS._value.get() == before


def test_the_figures_of_the_process_tree_are_real() -> None:
    import os

    found = {metric.name: metric.samples[0].value for metric in ProcessTree(os.getpid()).collect()}
    assert found["process_resident_memory_bytes"] > 10_000_000
    assert found["process_cpu_seconds"] > 0
    assert found["process_open_fds"] > 3
    assert b"http_requests_total" in collect()[0]
