"""Dates and times on pages, in the time zone and the manner of whoever reads: the one place that writes them."""

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from flask import g

from portal.http.request import signed_in
from portal.identity.preferences import language_of, zone_of
from portal.kernel.db import now

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


@dataclass(frozen=True, slots=True)
class Manner:
    """Patterns of a way to write; `-` leaves a leading zero out."""

    date: str
    day: str
    time: str
    minutes: str


MANNERS = {
    "en": Manner("%Y-%m-%d", "%-d %b", "%H:%M:%S", "%H:%M"),
    "en-GB": Manner("%-d %b %Y", "%-d %b", "%H:%M:%S", "%H:%M"),
    "en-US": Manner("%b %-d, %Y", "%b %-d", "%-I:%M:%S %p", "%-I:%M %p"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes moments for one reader."""

    language: str
    zone: ZoneInfo

    @property
    def manner(self) -> Manner:
        """How."""
        return MANNERS[self.language]

    def exact(self, moment: datetime | None) -> str:
        """`2026-11-20 16:49:07 UTC`."""
        if moment is None:
            return "–"
        local = moment.astimezone(self.zone)
        name = str(local.tzname())
        # Places without a name for their time have numbers: -03.
        return f"{local.strftime(f'{self.manner.date} {self.manner.time}')} {name if name.isalpha() else f'UTC{name}'}"

    def clock_s(self, moment: datetime) -> str:
        """`16:49:07` today, with the date before that."""
        local, today = moment.astimezone(self.zone), now().astimezone(self.zone).date()
        return local.strftime(self.manner.time if local.date() == today else f"{self.manner.date} {self.manner.time}")

    def clock(self, moment: datetime) -> str:
        """`16:49` within the last 20 hours, else the day."""
        is_new = (now() - moment).total_seconds() < 20 * HOUR_S
        return moment.astimezone(self.zone).strftime(self.manner.minutes if is_new else self.manner.day)

    def ago(self, moment: datetime | None) -> str:
        """`3 min ago`, `2 h ago`, `12 Mar`."""
        if moment is None:
            return "–"
        seconds = (now() - moment).total_seconds()
        if seconds < MINUTE_S:
            return "just now"
        if seconds < HOUR_S:
            return f"{int(seconds // MINUTE_S)} min ago"
        if seconds < DAY_S:
            return f"{int(seconds // HOUR_S)} h ago"
        local = moment.astimezone(self.zone)
        return local.strftime(self.manner.day if local.year == now().astimezone(self.zone).year else self.manner.date)


def writer() -> Writer:
    """The one for whoever asks; for strangers, the international way in UTC."""
    if "writer" not in g:
        found = signed_in()
        user = found.user if found else None
        g.writer = Writer(language_of(user), zone_of(user))
    made: Writer = g.writer
    return made


def exact(moment: datetime | None) -> str:
    """`2026-11-20 16:49:07 UTC`."""
    return writer().exact(moment)


def clock_s(moment: datetime) -> str:
    """`16:49:07` today, with the date before that."""
    return writer().clock_s(moment)


def clock(moment: datetime) -> str:
    """`16:49` within the last 20 hours, else the day."""
    return writer().clock(moment)


def ago(moment: datetime | None) -> str:
    """`3 min ago`, `2 h ago`, `12 Mar`."""
    return writer().ago(moment)


def time_zone() -> str:
    """Name of the zone that the times are in."""
    return writer().zone.key


def language() -> str:
    """For the `lang` of pages."""
    return writer().language
