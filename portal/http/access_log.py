"""One log line per request, without query string and body: both may hold what must not be kept."""

import logging
import time

from flask import Flask, Response, g, request

log = logging.getLogger("portal.access")
QUIET = {"probes.health", "probes.healthz", "probes.ready", "probes.metrics", "static"}


def install(app: Flask) -> None:
    """Log every request when it is answered, and give its id back."""

    @app.after_request
    def line(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.get("request_id", "")
        level = logging.DEBUG if request.endpoint in QUIET else logging.INFO
        found = g.get("signed_in")
        log.log(
            level, "%s %s %s", request.method, request.path, response.status_code,
            extra={
                "request_id": g.get("request_id", ""), "user_id": found.principal.user_id if found else None, "method": request.method, "path": request.path,
                "status_code": response.status_code, "duration_ms": round((time.perf_counter() - g.started) * 1000, 1) if "started" in g else None,
            },
        )  # fmt: skip
        return response
