"""Schedules of volumes: when the portal takes a snapshot by itself, and how long it keeps it. Taking them is in `schedule_tending`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from portal.kernel import fields as f
from portal.kernel.alerts import Notice, alert
from portal.kernel.authz import authorize, target_of
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import operation
from portal.kernel.errors import Conflict, InvalidRequest
from portal.storage.volume_keys import check_use
from portal.storage.volume_models import Volume

FREQUENCIES = ("hourly", "daily", "weekly", "monthly")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# Fewer than a volume can have, so that there is room for those that people take.
MOST_KEPT = 90
PER_DAY = {"hourly": 24.0, "daily": 1.0, "weekly": 1 / 7, "monthly": 1 / 28}
MONTH_DAYS = 31
TIME = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
Frequency = Annotated[str, f.FieldInfo(f.Choice(("", *FREQUENCIES)), "How often", none="No schedule")]
Time = Annotated[
    str,
    f.FieldInfo(
        f.Line(5, TIME, says="must be a time of day, such as 02:30"), "At", "Time of day, UTC; of an hourly schedule only the minutes count."
    ),
]
Weekday = Annotated[str, f.FieldInfo(f.Choice(WEEKDAYS), "On", "Of a weekly schedule. A monthly one is due on the first day.")]
Days = Annotated[int | None, f.FieldInfo(f.Int(1, 3650), "Keep for", "Each is deleted after so many days.", "days")]
Count = Annotated[int | None, f.FieldInfo(f.Int(1, MOST_KEPT), "Keep the newest", "Older ones of the schedule are deleted.", "snapshots")]
Enabled = Annotated[bool, f.FieldInfo(f.Bool(), "Switched on", "Switched off, it takes none and deletes none.")]
Due = Annotated[str, f.FieldInfo(f.Line(40), "Due")]
Reason = Annotated[str, f.FieldInfo(f.LongText(2000), "Reason")]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a snapshot of a volume is due, and how long it is kept: for so many days, or as long as it is among so many newest."""

    frequency: str
    time: str = "00:00"
    weekday: str = WEEKDAYS[0]
    retention_days: int | None = None
    retention_count: int | None = None
    is_enabled: bool = True

    def next_after(self, moment: datetime) -> datetime:
        """The first time after a moment at which a snapshot is due."""
        hour, minute = map(int, self.time.split(":"))
        moment = moment.astimezone(UTC)
        day = moment.replace(hour=hour, minute=minute, second=0, microsecond=0)
        if self.frequency == "hourly":
            due = moment.replace(minute=minute, second=0, microsecond=0)
            return due if due > moment else due + timedelta(hours=1)
        if self.frequency == "daily":
            return day if day > moment else day + timedelta(days=1)
        if self.frequency == "weekly":
            due = day + timedelta(days=(WEEKDAYS.index(self.weekday) - day.weekday()) % 7)
            return due if due > moment else due + timedelta(days=7)
        due = day.replace(day=1)
        return due if due > moment else (due + timedelta(days=MONTH_DAYS)).replace(day=1)

    def last_before(self, moment: datetime, first: datetime) -> datetime:
        """The last time, from a `first` that was due on, at which one is due until a moment: what was missed meanwhile cannot be had any more."""
        spans = {"hourly": timedelta(hours=1), "daily": timedelta(days=1), "weekly": timedelta(days=7), "monthly": timedelta(days=MONTH_DAYS)}
        due = max(first, self.next_after(moment - 2 * spans[self.frequency]))
        while (following := self.next_after(due)) <= moment:
            due = following
        return due

    @property
    def in_words(self) -> str:
        """When, and for how long, as a person says it."""
        when = {
            "hourly": f"Every hour at minute {int(self.time[3:])}", "daily": f"Every day at {self.time} UTC",
            "weekly": f"Every {self.weekday.capitalize()} at {self.time} UTC", "monthly": f"On the first of every month at {self.time} UTC",
        }  # fmt: skip
        kept = [
            f"kept for {self.retention_days:,} {_many('day', self.retention_days)}" if self.retention_days else "",
            f"the newest {self.retention_count} kept" if self.retention_count else "",
        ]
        return ", ".join(filter(None, (when[self.frequency], *kept)))


def _many(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"


def schedule_of(volume: Volume) -> Schedule | None:
    """The schedule of a volume, if it has one."""
    return Schedule(**volume.snapshot_schedule) if volume.snapshot_schedule else None


def schedule_shown(volume: Volume) -> Mapping[str, Any] | None:
    """The schedule of a volume as the API tells it."""
    return dict(volume.snapshot_schedule) if volume.snapshot_schedule else None


@operation(Volume, "set_snapshot_schedule", label="Set snapshot schedule", needs="write", icon="clock", in_menu=False,
           present=lambda row: row.snapshot_schedule or {})  # fmt: skip
def volume_set_snapshot_schedule(
    ctx: Context, volume: Volume, *, frequency: Frequency = "", time: Time = "00:00", weekday: Weekday = WEEKDAYS[0], retention_days: Days = None,
    retention_count: Count = None, is_enabled: Enabled = True,
) -> None:  # fmt: skip
    """Take snapshots of the volume again and again, and delete them in time; or end that: snapshots that were taken stay then."""
    volume.snapshot_problem = ""
    if not frequency:
        volume.snapshot_schedule = volume.next_snapshot_at = None
        return
    # What the portal takes by itself, whoever wants it must be allowed to take.
    authorize(ctx, "storage.snapshot.create", target_of(volume))
    if retention_count is not None:
        # Those that are one too many are deleted, and they are the owner's.
        authorize(ctx, "storage.snapshot.delete", target_of(volume))
    check_use(ctx, volume)
    if retention_days is None and retention_count is None:
        problem = "is missing: for how many days are snapshots kept, or how many of them (retention_count)?"
        raise InvalidRequest.fields({"retention_days": [problem]})
    if retention_count is None and (most := round((retention_days or 0) * PER_DAY[frequency])) > MOST_KEPT:
        problem = f"would keep {most:,} snapshots; at most {MOST_KEPT} are kept by a schedule. Keep them for less long, or take them less often."
        raise InvalidRequest.fields({"retention_days": [problem]})
    found = Schedule(frequency, time, weekday, retention_days, retention_count, is_enabled)
    volume.snapshot_schedule, volume.next_snapshot_at = asdict(found), found.next_after(now()) if is_enabled else None


def due_of(text: str) -> datetime:
    """When a snapshot was due, from the input of an operation."""
    return datetime.fromisoformat(text)


def _say_missed(ctx: Context, volume: Volume, inputs: Mapping[str, Any]) -> None:
    tell_problem(ctx, volume, inputs["reason"])


@operation(Volume, "miss_snapshot", label="Miss a snapshot", needs="platform", internal=True, while_locked=True, along=_say_missed)
def volume_miss_snapshot(ctx: Context, volume: Volume, *, due: Due, reason: Reason) -> None:
    """Go on to the next time at which a snapshot is due: this one cannot be had."""
    del ctx, reason
    schedule = schedule_of(volume)
    if schedule is None or volume.next_snapshot_at != due_of(due):
        raise Conflict(f"No snapshot of {volume.name} was due at {due}.")
    volume.next_snapshot_at = schedule.next_after(now())


def tell_problem(ctx: Context, volume: Volume, reason: str) -> None:
    """Keep with a volume, locked by the caller, why its schedule does not work; its owner is told once, until it works again."""
    if not volume.snapshot_problem and volume.owner_id is not None:
        title = f"No snapshot of {volume.name} was taken"
        alert(ctx, volume.owner_id, Notice(title, reason, "critical", "storage.volume", volume.id, f"/storage/volumes/{volume.id}/snapshots"))
    volume.snapshot_problem = reason


def scheduled_name(volume: Volume, due: datetime) -> str:
    """What a snapshot is called that was due at a time."""
    return f"{volume.name[:200]}-{due.astimezone(UTC):%Y%m%d-%H%M}"
