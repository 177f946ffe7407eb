"""How a user likes the console: kept with the account, of no concern to anybody else."""

from collections.abc import Mapping
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from portal.identity.access import user_lock
from portal.identity.models import User
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import InvalidRequest
from portal.kernel.operations import refuse_restricted

LANGUAGES = {"en": "English, international", "en-GB": "English, United Kingdom", "en-US": "English, United States"}
DEFAULT_LANGUAGE, DEFAULT_ZONE = "en", "UTC"
# Names that a machine gives its own zone, or none.
NO_ZONES = frozenset({"localtime", "Factory", "posixrules"})


def preferences_update(ctx: Context, changes: Mapping[str, bool | str | list[str]]) -> None:
    """Keep what the caller likes; nobody else is concerned, so it is not audited."""
    with transaction(ctx.db):
        user = user_lock(ctx.db, ctx.principal.user_id)
        user.preferences = {**user.preferences, **changes}


def locale_update(ctx: Context, *, language: str | None = None, time_zone: str | None = None) -> None:
    """Choose how dates and times are written, and in which time zone. Raises InvalidRequest, or Forbidden for a restricted credential."""
    refuse_restricted(ctx, "identity.user.update_preferences")
    problems = {}
    if language is not None and language not in LANGUAGES:
        problems["language"] = [f"must be one of {', '.join(LANGUAGES)}."]
    if time_zone is not None and time_zone not in zones():
        problems["time_zone"] = [f"{time_zone[:64]!r} is no time zone; one is named like Europe/Ljubljana, or UTC."]
    if problems:
        raise InvalidRequest.fields(problems)
    chosen = {"language": language, "time_zone": time_zone}
    preferences_update(ctx, {name: value for name, value in chosen.items() if value is not None})


def language_of(user: User | None) -> str:
    """What the user chose, or the international way."""
    chosen = str(user.preferences.get("language", "")) if user is not None else ""
    return chosen if chosen in LANGUAGES else DEFAULT_LANGUAGE


def zone_of(user: User | None) -> ZoneInfo:
    """The user's time zone; UTC for whoever chose none, or one that this machine does not know any more."""
    chosen = str(user.preferences.get("time_zone", "")) if user is not None else ""
    return ZoneInfo(chosen if chosen in zones() else DEFAULT_ZONE)


@cache
def zones() -> frozenset[str]:
    """The names of all time zones (IANA)."""
    return frozenset(available_timezones()) - NO_ZONES | {DEFAULT_ZONE}


@cache
def zones_by_area() -> Mapping[str, list[str]]:
    """Those that are places, by continent or ocean."""
    areas: dict[str, list[str]] = {}
    for name in sorted(zones()):
        area, _, place = name.partition("/")
        if place and area in {"Africa", "America", "Antarctica", "Arctic", "Asia", "Atlantic", "Australia", "Europe", "Indian", "Pacific"}:
            areas.setdefault(area, []).append(name)
    return areas
