"""The filters of the audit log in a query string or a form, and the file of an export: the same for console and API."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from flask import Response, send_file

from portal.http.listing import whole
from portal.kernel.audit_export import AuditExport
from portal.kernel.audit_query import FILTERS, AuditQuery
from portal.kernel.errors import InvalidRequest

TIMES = ("since", "until")
NAMES = (*FILTERS, *TIMES)
LONGEST = 255
OUTCOMES = ("success", "failure", "denied")
MEANINGS = {
    "user_id": "Only what this user did.", "username": "Only what somebody of this name did.", "resource_type": "Such as compute.instance.",
    "credential": "Only what was done with this session, token or job, as entries name it.", "resource_id": "Only what concerns this resource.",
    "status": "success, failure or denied.", "source_ip": "Only what came from this address.", "project_id": "Only what concerns this project.",
    "request_id": "Only what this request did.", "action": "This action; with * at its end, every action that begins so.",
    "search": "Whole user name, resource name, id or address, or part of an action.", "since": "Not before this moment (ISO 8601).",
    "until": "Before this moment (ISO 8601).",
}  # fmt: skip


def audit_query(args: Mapping[str, str], *, limit: int) -> AuditQuery:
    """Read the filters and the place of a page. Raises InvalidRequest naming what is wrong."""
    given = {name: args.get(name, "").strip() for name in FILTERS}
    for name, value in given.items():
        if len(value) > LONGEST:
            raise InvalidRequest.fields({name: [f"must have at most {LONGEST} characters; this has {len(value)}."]})
    before = whole(args, "cursor", 0, low=0, high=2**62)
    if given["status"] and given["status"] not in OUTCOMES:
        raise InvalidRequest.fields({"status": [f"must be one of {', '.join(OUTCOMES)}."]})
    since, until = moment(args, "since"), moment(args, "until")
    if since is not None and until is not None and until < since:
        raise InvalidRequest.fields({"until": ["must not be before since."]})
    return AuditQuery(**given, since=since, until=until, before_seq=before or None, after_seq=None, limit=limit)


def moment(args: Mapping[str, str], name: str) -> datetime | None:
    """A day or moment; without a zone it is UTC. Raises InvalidRequest."""
    text = args.get(name, "")
    try:
        found = datetime.fromisoformat(text) if text else None
        # What lies beyond the calendar in UTC is no moment either.
        return None if found is None else (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest.fields({name: ["must be a day or a moment in ISO 8601, such as 2026-01-31 or 2026-01-31T12:00:00Z."]}) from None


def send_export(row: AuditExport, path: Path) -> Response:
    """The file of an export as a download."""
    return send_file(path, mimetype="application/gzip", as_attachment=True, download_name=f"audit-log-{row.created_at:%Y-%m-%d}.{row.format}.gz")
