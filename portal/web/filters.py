"""How values look on pages: moments, sizes, words. For templates; everything is escaped by them."""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any
from unicodedata import category

from flask import Flask
from ua_parser import parse

from portal.kernel.audit import AuditEntry
from portal.kernel.db import now
from portal.kernel.resource import ResourceType
from portal.kernel.wording import within
from portal.web.moments import HOUR_S, MINUTE_S, ago, clock, clock_s, exact, language, time_zone

JOB_TONES = {"succeeded": "ok", "failed": "bad", "dead": "bad", "cancelled": "off", "queued": "busy", "running": "busy", "retrying": "busy"}
AUDIT_TONES = {"success": "ok", "failure": "bad", "denied": "warn"}
AUDIT_WORDS = {"success": "Done", "failure": "Failed", "denied": "Denied"}
# Control characters, marks of direction and of format, ends of lines and paragraphs; not what joins letters and emoji.
UNSEEN, JOINERS = frozenset({"Cc", "Cf", "Zl", "Zp"}), "\u200c\u200d"
JOB_WORDS = {"succeeded": "Done", "dead": "Given up"}


def install(app: Flask) -> None:
    """Make them known to templates."""
    for function in (
        ago, exact, clock, words, duration, tone_of, job_tone, job_word, audit_tone, audit_word, decision, clock_s, shown, size, iso, device, way_in, within, legible
    ):  # fmt: skip
        app.jinja_env.filters[function.__name__] = function
    app.jinja_env.globals.update(time_zone=time_zone, language=language)


def legible(name: str) -> str:
    """A name with what cannot be seen in it shown: control characters, and marks that turn the direction of what follows."""
    return "".join(f"⟨U+{ord(each):04X}⟩" if category(each) in UNSEEN and each not in JOINERS else each for each in name)


@lru_cache(maxsize=1024)
def device(user_agent: str) -> str:
    """`Firefox on Linux`, from what a browser says of itself."""
    found = parse(user_agent)
    browser, system = found.user_agent, found.os
    if browser is None and system is None:
        return user_agent[:60] or "Unknown"
    return " on ".join(each.family for each in (browser, system) if each is not None)


def way_in(method: str) -> str:
    """How somebody signed in, in words."""
    if method == "api":
        return "Password, by a program"
    return f"Through {method.removeprefix('sso:')}" if method.startswith("sso:") else method.capitalize()


def iso(moment: datetime) -> str:
    """For `datetime` attributes."""
    return moment.isoformat(timespec="seconds")


def duration(start: datetime | None, end: datetime | None = None) -> str:
    """`8 s`, `1 min 12 s`."""
    if start is None:
        return ""
    seconds = ((end or now()) - start).total_seconds()
    if seconds < 10:  # noqa: PLR2004 - below ten seconds tenths mean something
        return f"{max(seconds, 0):.1f} s"
    if seconds < MINUTE_S:
        return f"{int(seconds)} s"
    if seconds < HOUR_S:
        return f"{int(seconds // MINUTE_S)} min {int(seconds % MINUTE_S)} s"
    return f"{int(seconds // HOUR_S)} h {int(seconds % HOUR_S // MINUTE_S)} min"


def words(text: str) -> str:
    """`awaiting_upload` → `Awaiting upload`."""
    return text.replace("_", " ").capitalize()


def tone_of(row: Any, rtype: ResourceType) -> str:
    """Colour family of a row's state."""
    return rtype.lifecycle.tone(row.state) if rtype.lifecycle else "off"


def job_tone(state: str) -> str:
    """Colour family of a job's state."""
    return JOB_TONES.get(state, "off")


def job_word(state: str) -> str:
    """Word for a job's state."""
    return JOB_WORDS.get(state, words(state))


def audit_tone(status: str) -> str:
    """Colour family of an outcome."""
    return AUDIT_TONES.get(status, "ok")


def size(count: float) -> str:
    """Bytes in binary units: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 - binary units
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def audit_word(status: str) -> str:
    """Word for an outcome."""
    return AUDIT_WORDS.get(status, words(status))


def decision(entry: AuditEntry) -> str:
    """What allowed or refused an action, as its entry tells."""
    told = entry.details.get("decision")
    found: Mapping[str, object] = told if isinstance(told, dict) else entry.details
    policy, statement = found.get("policy"), found.get("statement")
    verb = "Denied" if entry.status == "denied" else "Allowed"
    if policy:
        return f"{verb} by {policy}" + (f", statement {statement}" if statement else "")
    return {"denied": "Denied: nothing allows it", "failure": "Not done"}.get(entry.status, "Needs no permission")


def shown(value: Any) -> str:
    """A field's value as text; nothing is a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, datetime):
        return exact(value)
    return json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
