"""JSON log lines in the shape of the service standards; secrets never reach them.

Field names are the union of both standards: `status_code` and `status`, `request_id` and `correlation_id`.
"""

import json
import logging
import logging.config
import re
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import yaml

from portal.settings import ROOT, Settings

NAMES = {"WARNING": "warn", "CRITICAL": "fatal"}
PYTHON_LEVELS = {"warn": "WARNING", "fatal": "CRITICAL"}
# Of the request that a thread is at work on, for every line that it writes.
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
EXTRA = ("request_id", "user_id", "duration_ms", "status_code", "method", "path", "job_id", "kind", "worker")
SECRET = re.compile(
    r"""(?ix)
    (atonix(?:_|\.[ar]\.)[A-Za-z0-9_-]{8,}
    | (?:password|passwd|secret|secret_key|token|api[_-]?key|private_key|user_data|authorization|cookie|session) \\?["']? \s*[:=]\s*
      (?:(?:token|bearer|apikey|basic)\s+)?)
    # What is in quotation marks ends with them, anything else at the next space or separator.
    (\\?"(?:[^"\\]|\\.)*"? | '(?:[^'\\]|\\.)*'? | (?:(?:token|bearer|apikey|basic)\s+)?[^\s"',;&}]+)?
    """
)
USERINFO = re.compile(r"://([^/\s:@]*):(\S*)@")
# PostgreSQL repeats whole rows there, over as many lines as their text has.
DETAIL = re.compile(r"(?ms)^DETAIL:.*?(?=^\[SQL|^The above exception|^During handling|\Z)")
KEY_BLOCK = re.compile(r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|$)")


def redact(text: str) -> str:
    """Mask what looks like a secret: tokens, `password=…`, user information in URLs."""

    def mask(found: re.Match[str]) -> str:
        return "atonix_********" if found[1].lower().startswith(("atonix_", "atonix.")) else f"{found[1]}********"

    text = KEY_BLOCK.sub(r"\1********\2", DETAIL.sub("DETAIL: ********\n", text))
    return USERINFO.sub(r"://\1:********@", SECRET.sub(mask, text))


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def __init__(self, service: str = "atonix-portal", environment: str = "production", version: str = "") -> None:
        """The three words end up in `context` of each line."""
        super().__init__()
        self.context = {"service": service, "environment": environment, "version": version}

    def format(self, record: logging.LogRecord) -> str:
        """Build the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {
            "timestamp": moment, "level": NAMES.get(record.levelname, record.levelname.lower()), "logger": record.name,
            "message": redact(record.getMessage()), "service": self.context["service"],
        }  # fmt: skip
        line.update(_extras({"request_id": REQUEST_ID.get(), **vars(record)}))
        if "request_id" in line:
            line["correlation_id"] = line["request_id"]
        if "status_code" in line:
            line["status"] = line["status_code"]
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        line["context"] = self.context
        return json.dumps(line, ensure_ascii=False, default=str)


def _extras(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: redact(value) if isinstance(value, str) else value for name in EXTRA if (value := values.get(name)) is not None}


def setup_logging(settings: Settings) -> None:
    """Configure logging from config/logging.yaml with the level and environment of the settings."""
    config = yaml.safe_load((ROOT / "config" / "logging.yaml").read_text())
    for formatter in config["formatters"].values():
        formatter["environment"] = settings.environment
        formatter["version"] = (ROOT / ".version").read_text().strip()
    config["root"]["level"] = PYTHON_LEVELS.get(settings.log_level, settings.log_level.upper())
    logging.config.dictConfig(config)
    # At its lowest level the library writes down the tokens that it issues.
    logging.getLogger("authlib").setLevel(logging.INFO)
