"""Probes and metrics, in the shapes of the service standards."""

import time
from datetime import UTC, datetime
from typing import Any

import psutil
from flask import Blueprint, Flask, Response, g, jsonify, request
from flask.typing import ResponseReturnValue
from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy import func, select, text

from portal.http.guard import Access, access
from portal.http.request import portal_settings
from portal.kernel.audit import AuditHead
from portal.kernel.audit_checkpoints import newest_checkpoint
from portal.kernel.audit_keys import trust_of
from portal.kernel.audit_streams import streams
from portal.kernel.audit_verifications import standing
from portal.kernel.capabilities import capabilities, hangs
from portal.kernel.db import db
from portal.kernel.jobs import ACTIVE, Job
from portal.networking.bounds import refused_packets
from portal.security.key_store import master_problem
from portal.settings import ROOT

SERVICE = "atonix-portal"
VERSION = (ROOT / ".version").read_text().strip()
BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
FULL_PERCENT = 98.0
MASTER_REMEDY = "docs/keys.md, The master key"

probes = Blueprint("probes", __name__)

REQUESTS = Counter("http_requests_total", "Total HTTP requests", ["method", "endpoint", "status"])
DURATION = Histogram("http_request_duration_seconds", "HTTP request duration", ["method", "endpoint"], buckets=BUCKETS)
ACTIVE_REQUESTS = Gauge("http_requests_active", "Active request count", multiprocess_mode="livesum")
ERRORS = Counter("http_errors_total", "Total HTTP errors", ["method", "endpoint", "status"])
AUDIT_ENTRIES = Gauge("portal_audit_entries", "Number of the newest entry of the audit log", multiprocess_mode="mostrecent")
AUDIT_VERIFIED = Gauge("portal_audit_verified_entry", "Entry up to which the audit log was verified", multiprocess_mode="mostrecent")
AUDIT_SIGNED = Gauge("portal_audit_signed_entry", "Entry of the newest signed checkpoint", multiprocess_mode="mostrecent")
AUDIT_BROKEN = Gauge(
    "portal_audit_broken", "1 while the audit log is broken, by a verification that none has refuted", multiprocess_mode="mostrecent"
)
AUDIT_WHOLE = Gauge(
    "portal_audit_verified_timestamp_seconds",
    "When the whole audit log was last verified and found whole; 0 for never",
    multiprocess_mode="mostrecent",
)
AUDIT_LAG = Gauge("portal_audit_stream_lag", "Entries of the audit log that a receiver does not have yet", ["name"], multiprocess_mode="mostrecent")
HANGS = Gauge("portal_worker_hangs", "Workers that ended themselves because this did not come on in them", ["what"], multiprocess_mode="mostrecent")
REFUSED = Gauge(
    "portal_network_bound_refusals",
    "Packets that bounds of connections have refused in the VPCs that are there",
    ["bound"],
    multiprocess_mode="mostrecent",
)
AUDIT = (AUDIT_LAG, AUDIT_ENTRIES, AUDIT_VERIFIED, AUDIT_SIGNED, AUDIT_BROKEN, AUDIT_WHOLE)
JOBS_WAITING = Gauge("portal_jobs", "Jobs that have not ended, by state", ["state"], multiprocess_mode="mostrecent")


def install(app: Flask) -> None:
    """Serve the probes and measure every request."""
    app.register_blueprint(probes)
    app.before_request(_started)
    app.after_request(_measured)


def _started() -> None:
    g.started = time.perf_counter()
    ACTIVE_REQUESTS.inc()
    g.counted = True


def _measured(response: Response) -> Response:
    endpoint = request.url_rule.rule if request.url_rule else "unmatched"
    status = str(response.status_code)
    method = request.method if request.method in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"} else "OTHER"
    REQUESTS.labels(method, endpoint, status).inc()
    if response.status_code >= 400:  # noqa: PLR2004 - HTTP's own border
        ERRORS.labels(method, endpoint, status).inc()
    if "started" in g:
        DURATION.labels(method, endpoint).observe(time.perf_counter() - g.started)
    if g.pop("counted", False):
        # After the body is sent, not before: a stream is active as long as it lasts.
        response.call_on_close(ACTIVE_REQUESTS.dec)
    return response


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _database() -> dict[str, Any]:
    try:
        db.session.execute(text("SELECT 1"))
    except Exception as error:  # noqa: BLE001 - a probe reports whatever is wrong
        return {"status": "error", "message": type(error).__name__}
    return {"status": "ok", "message": "Database connection OK"}


@probes.get("/health")
@probes.get("/healthz", endpoint="healthz")
@access(Access.PUBLIC)
def health() -> ResponseReturnValue:
    """Liveness: the process answers, even if it is degraded."""
    database = _database()
    resources = {"cpu_percent": psutil.cpu_percent(interval=None), "memory_percent": psutil.virtual_memory().percent}
    status = "healthy" if database["status"] == "ok" else "degraded"
    checks = {"database": database, "resources": resources}
    return jsonify(status=status, service=SERVICE, version=VERSION, timestamp=_timestamp(), checks=checks)


@probes.get("/ready")
@access(Access.PUBLIC)
def ready() -> ResponseReturnValue:
    """Readiness: may traffic come? A missing engine is said here and does not keep the portal from serving."""
    disk = psutil.disk_usage(str(portal_settings().data_dir))
    checks: dict[str, Any] = {
        "database": _database(),
        "disk_space": {"status": "ok" if disk.percent < FULL_PERCENT else "error", "percent_used": disk.percent},
    }
    is_ready = all(check["status"] == "ok" for check in checks.values())
    if checks["database"]["status"] == "ok":
        checks["capabilities"] = {
            row.name: {
                "status": "ok" if row.available and row.fresh else "unavailable" if not row.available else "stale",
                "detail": row.detail, "reason": row.reason, "remedy": row.remedy,
            }
            for row in capabilities(db.session())
        }  # fmt: skip
        if problem := master_problem(db.session(), portal_settings()):
            checks["capabilities"]["encryption_keys"] = {"status": "unavailable", "detail": "", "reason": problem, "remedy": MASTER_REMEDY}
    response = jsonify(ready=is_ready, service=SERVICE, timestamp=_timestamp(), checks=checks)
    response.status_code = 200 if is_ready else 503
    return response


@probes.get("/metrics")
@access(Access.PUBLIC)
def metrics() -> ResponseReturnValue:
    """Prometheus exposition of all web processes."""
    waiting = select(Job.state, func.count()).where(Job.state.in_(ACTIVE)).group_by(Job.state)
    counts = {state: number for state, number in db.session.execute(waiting)}  # noqa: C416 - rows are no tuples for the type checker
    for state in ACTIVE:
        JOBS_WAITING.labels(state).set(counts.get(state, 0))
    for what, count in hangs(db.session()).items():
        HANGS.labels(what).set(count)
    for bound, count in refused_packets(db.session()).items():
        REFUSED.labels(bound).set(count)
    _measure_audit()
    return exposition()


def _measure_audit() -> None:
    session = db.session()
    head, found, signed = session.get(AuditHead, 1), standing(session, trust_of(portal_settings())), newest_checkpoint(session)
    for stream, lag in streams(session, portal_settings()):
        AUDIT_LAG.labels(stream.name).set(lag)
    AUDIT_ENTRIES.set(head.seq if head else 0)
    AUDIT_VERIFIED.set(found.newest.to_seq if found.newest else 0)
    AUDIT_SIGNED.set(signed.seq if signed else 0)
    AUDIT_WHOLE.set(found.whole.at.timestamp() if found.whole else 0)
    AUDIT_BROKEN.set(1 if found.broken else 0)


def exposition() -> Response:
    """The registry of this process, or of all web processes where several share a directory."""
    from portal.http.exporter import collect

    body, content_type = collect()
    return Response(body, content_type=content_type)
