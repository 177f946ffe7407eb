"""Headers of object lock: what a request asks for, and what an answer says."""

from datetime import UTC, datetime

from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.requests import S3Request
from portal.storage.facts import Version
from portal.storage.locks import MODES, Lock, moment_problem

MODE, UNTIL, HOLD = (f"x-amz-object-lock-{name}" for name in ("mode", "retain-until-date", "legal-hold"))
BYPASS = "x-amz-bypass-governance-retention"
ON, OFF = "ON", "OFF"


def lock_asked(request: S3Request) -> Lock:
    """The lock that a request which writes an object asks for. Raises InvalidArgument."""
    mode, until, hold = (request.header(name) for name in (MODE, UNTIL, HOLD))
    if bool(mode) is not bool(until):
        raise S3Error("InvalidArgument", f"{UNTIL} and {MODE} must both be supplied", ArgumentName=UNTIL if mode else MODE)
    if mode and mode not in MODES:
        raise S3Error("InvalidArgument", "Unknown wormMode directive.", ArgumentName=MODE, ArgumentValue=mode[:64])
    if hold not in {"", ON, OFF}:
        raise S3Error("InvalidArgument", "Legal Hold must be either of 'ON' or 'OFF'", ArgumentName=HOLD, ArgumentValue=hold[:64])
    moment = moment_of(until)
    if until and moment is None:
        raise S3Error("InvalidArgument", "The retain until date must be provided in ISO 8601 format", ArgumentName=UNTIL, ArgumentValue=until[:64])
    if moment is not None and (problem := moment_problem(moment)):
        raise S3Error("InvalidArgument", f"The retain until date {problem}!", ArgumentName=UNTIL, ArgumentValue=until[:64])
    return Lock(mode, moment, hold == ON if hold else None)


def moment_of(text: str) -> datetime | None:
    """A moment as ISO 8601 has it, with its time zone; None for what is none."""
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def lock_headers(version: Version) -> dict[str, str]:
    """What an answer says of a version's lock."""
    found = {MODE: version.lock_mode, UNTIL: xml.timestamp(version.retain_until)} if version.lock_mode and version.retain_until is not None else {}
    return found if version.legal_hold is None else {**found, HOLD: ON if version.legal_hold else OFF}


def may_bypass(request: S3Request) -> bool:
    """Whether the request asks to pass retentions that give way."""
    return request.header(BYPASS).lower() == "true"
