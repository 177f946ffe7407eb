"""Snapshots: what volumes held, kept without copying and without stopping anybody."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

from sqlalchemy import func, select
from sqlalchemy.orm import joinedload
from sqlalchemy.orm.interfaces import ORMOption

from portal.kernel import fields as f
from portal.kernel.authz import authorize, target_of
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import Effect, lock_operations, operation, update_operation
from portal.kernel.errors import Conflict, InvalidRequest
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.resource import Column, ResourceType
from portal.kernel.sharing import LIST_OF_IDS, share_operation, shared_accounts, veil_shares, visibility
from portal.storage import volume_steps as steps
from portal.storage.schedules import Due, Reason, due_of, schedule_of, scheduled_name, tell_problem
from portal.storage.volume_keys import inherit
from portal.storage.volume_models import Snapshot, Volume, VolumeType
from portal.storage.volumes import AT_REST, TYPE_FIELD, check_origin, refuse_without_room

LIFECYCLE = Lifecycle(
    "pending",
    {
        "pending": frozenset({"completed", "error", "cancelled"}),
        "completed": frozenset({"deleting"}),
        "error": frozenset({"pending", "deleting"}),
        "deleting": frozenset({"deleted", "error"}),
    },
    transient=frozenset({"pending", "deleting"}),
    ended=frozenset({"deleted", "cancelled"}),
    tones={"error": "bad"},
)
# Each is a file that the next one is built on; QEMU opens all of them.
MOST_SNAPSHOTS = 100
# States of what is being made from a snapshot.
MAKING = ("creating", "pending", "restoring", "importing")
VOLUME_FIELD = f.FieldInfo(f.Ref("storage.volume"), "Volume", "What it holds now is kept.", aliases=("volume_id",))
SCHEDULED_FIELD = f.FieldInfo(f.Ref("storage.volume", exclusive=True), "Volume")
COPY_FIELD = f.FieldInfo(f.Ref("storage.snapshot"), "Snapshot", "Copy this one instead; the copy shares nothing with it.", aliases=("snapshot_id",))


@operation(
    Snapshot, "create", label="Take", needs="write", effect=Effect.CREATE, icon="plus", steps=steps.SNAPSHOT, holds="pending", settles="completed",
    fails="error",
    cancelled="cancelled",
)  # fmt: skip
def snapshot_create(
    ctx: Context, *, name: str, volume: Annotated[Volume | None, VOLUME_FIELD] = None, snapshot: Annotated[Snapshot | None, COPY_FIELD] = None,
    volume_type: Annotated[VolumeType | None, TYPE_FIELD] = None, description: str = "", retention_days: int | None = None,
    tags: dict[str, str] | None = None,
) -> Snapshot:  # fmt: skip
    """Take a snapshot of a volume, or copy one: a running guest goes on, and it is kept as after a power cut."""
    if (volume is None) == (snapshot is None):
        raise InvalidRequest.fields({"volume": ["is required, or a snapshot to copy; not both."]})
    given = {
        "name": name, "description": description, "tags": tags or {}, "retention_days": retention_days,
        "expires_at": now() + timedelta(days=retention_days) if retention_days else None,
    }  # fmt: skip
    if snapshot is not None:
        check_origin(snapshot, None, None)
        target = volume_type or snapshot.volume_type
        refuse_without_room(ctx, target)
        same = {"volume_id": snapshot.volume_id, "volume_name": snapshot.volume_name, "size_gb": snapshot.size_gb}
        copy = Snapshot(copy_of_id=snapshot.id, volume_type=target, **same, **given)
        inherit(ctx, copy, snapshot)
        return copy
    if volume_type is not None:
        raise InvalidRequest.fields({"volume_type": ["is the volume's own; a copy of a snapshot can be of another one."]})
    return _of_volume(ctx, volume, given)


def _of_volume(ctx: Context, volume: Any, given: dict[str, Any]) -> Snapshot:
    if volume.state not in AT_REST:
        raise Conflict(f"{volume.name} is {volume.state}; it has to be available or in use.", details={"state": volume.state})
    mine = (Snapshot.volume_id == volume.id, Snapshot.copy_of_id.is_(None), Snapshot.deleted_at.is_(None))
    number = ctx.db.scalar(select(func.count()).select_from(Snapshot).where(*mine)) or 0
    if number >= MOST_SNAPSHOTS:
        raise Conflict(
            f"{volume.name} has {number} snapshots, the most that a volume can have. Delete some first.",
            details={"limit": MOST_SNAPSHOTS, "used": number, "requested": 1},
        )
    row = Snapshot(
        volume_id=volume.id, volume_name=volume.name, size_gb=volume.size_gb, volume_type=volume.volume_type, image_id=volume.image_id, **given
    )
    inherit(ctx, row, volume)
    return row


def _volume_first(ctx: Context, snapshot: Snapshot, _inputs: Mapping[str, Any]) -> None:
    """Lock the volume before its snapshot."""
    ctx.db.get(Volume, snapshot.volume_id, with_for_update={"key_share": True}, populate_existing=True)


def _works_again(ctx: Context, snapshot: Snapshot) -> None:
    volume = ctx.db.get(Volume, snapshot.volume_id)
    if volume is not None:
        volume.snapshot_problem = ""


@operation(Snapshot, "take_scheduled", label="Take by schedule", needs="platform", effect=Effect.CREATE, steps=steps.SNAPSHOT, holds="pending",
           settles="completed", fails="error", cancelled="cancelled", internal=True, ahead=_volume_first, follow=_works_again)  # fmt: skip
def snapshot_take_scheduled(ctx: Context, *, volume: Annotated[Volume, SCHEDULED_FIELD], due: Due) -> Snapshot:
    """Take the snapshot that the schedule of a volume wants; what is due next changes in the same transaction, so that none is taken twice."""
    schedule = schedule_of(volume)
    if schedule is None or volume.next_snapshot_at != due_of(due):
        raise Conflict(f"No snapshot of {volume.name} was due at {due}.")
    moment = schedule.last_before(now(), due_of(due))
    volume.next_snapshot_at = schedule.next_after(max(now(), moment))
    given: dict[str, Any] = {
        "name": scheduled_name(volume, moment), "description": "Taken by the schedule of its volume.", "tags": {}, "owner_id": volume.owner_id,
        "scheduled_at": moment, "retention_days": schedule.retention_days,
        "expires_at": now() + timedelta(days=schedule.retention_days) if schedule.retention_days else None,
    }  # fmt: skip
    return _of_volume(ctx, volume, given)


def _say_failed(ctx: Context, snapshot: Snapshot, inputs: Mapping[str, Any]) -> None:
    volume = ctx.db.get(Volume, snapshot.volume_id)
    if volume is not None and volume.deleted_at is None and volume.snapshot_schedule:
        tell_problem(ctx, volume, inputs["reason"])


@operation(Snapshot, "discard", label="Discard", needs="platform", effect=Effect.REMOVE, steps=steps.FORGET, when={"error"}, holds="deleting",
           settles="deleted", fails="error", internal=True, ahead=_volume_first, along=_say_failed)  # fmt: skip
def snapshot_discard(ctx: Context, snapshot: Snapshot, *, reason: Reason) -> None:
    """Remove what is left of a snapshot that a schedule wanted and that could not be taken."""
    del ctx, snapshot, reason


@operation(Snapshot, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True, steps=steps.FORGET,
           when={"completed", "error"}, holds="deleting", settles="deleted", fails="error")  # fmt: skip
def snapshot_delete(ctx: Context, snapshot: Snapshot) -> None:
    """Delete a snapshot; volumes made from it keep what they have."""
    _refuse_used(ctx, snapshot)


@operation(Snapshot, "expire", label="Delete in time", needs="platform", effect=Effect.REMOVE, steps=steps.FORGET, when={"completed"},
           holds="deleting", settles="deleted", fails="error", internal=True)  # fmt: skip
def snapshot_expire(ctx: Context, snapshot: Snapshot) -> None:
    """Delete a snapshot whose time is over; one that is kept for longer since somebody looked stays."""
    if snapshot.expires_at is None or snapshot.expires_at > now():
        raise Conflict(f"{snapshot.name} is kept for longer.")
    _refuse_used(ctx, snapshot)


def _refuse_used(ctx: Context, snapshot: Snapshot) -> None:
    """Raise Conflict while something is made from a snapshot."""
    image = ctx.registry.model("compute.image")
    for model, column in ((Volume, Volume.snapshot_id), (Volume, Volume.restoring_id), (Snapshot, Snapshot.copy_of_id), (image, image.snapshot_id)):
        making = (column == snapshot.id, model.state.in_(MAKING), model.deleted_at.is_(None))
        if ctx.db.scalars(select(model.id).where(*making).limit(1)).first() is not None:
            raise Conflict(f"Something is being made from {snapshot.name}. Wait until that is done.")


def _shared(ctx: Context) -> None:
    """Raise InvalidRequest unless the caller may share with every project."""
    if not any(grant.role == "platform_admin" for grant in ctx.principal.grants) and not ctx.principal.is_system:
        raise InvalidRequest("Only a platform admin shares a snapshot with every project.")


@operation(Snapshot, "make_public", label="Share with everybody", needs="write", when={"completed"})
def snapshot_make_public(ctx: Context, snapshot: Snapshot) -> None:
    """Let every project make volumes from it."""
    _shared(ctx)
    _refuse_encrypted(snapshot)
    snapshot.is_public = True


@operation(Snapshot, "make_private", label="Share no longer", needs="write")
def snapshot_make_private(ctx: Context, snapshot: Snapshot) -> None:
    """Keep it to its project; volumes that were made from it stay."""
    del ctx
    snapshot.is_public = False


def _refuse_encrypted(snapshot: Snapshot) -> None:
    if snapshot.encryption_enabled:
        raise Conflict(f"{snapshot.name} is encrypted with a key of its project, which nobody else may use.")


snapshot_share = share_operation(Snapshot, when=("completed",), refuse=_refuse_encrypted)


def _expiry(ctx: Context, snapshot: Snapshot, changes: dict[str, Any]) -> None:
    if "retention_days" not in changes:
        return
    days = changes["retention_days"]
    until = snapshot.created_at + timedelta(days=days) if days else None
    if until is not None and until <= now():
        raise InvalidRequest.fields({"retention_days": [f"is less than the age of {snapshot.name}: it would be deleted at once. Delete it instead."]})
    if until is not None and (snapshot.expires_at is None or until < snapshot.expires_at):
        # Whoever brings its end nearer has the portal delete it.
        authorize(ctx, "storage.snapshot.delete", target_of(snapshot))
    snapshot.expires_at = until


def _eager() -> list[ORMOption]:
    return [joinedload(Snapshot.volume_type)]


SNAPSHOT = ResourceType(
    Snapshot, service="storage", name="snapshot", collection="snapshots", prefix="snap", label="Snapshot", plural="Snapshots", icon="cam",
    summary="What volumes held at a moment.",
    operations=[snapshot_create, snapshot_make_public, snapshot_make_private, snapshot_share, snapshot_delete,
                update_operation(Snapshot, before=_expiry, clearable=("retention_days",)), snapshot_take_scheduled, snapshot_discard, snapshot_expire,
                *lock_operations(Snapshot)],
    columns=[Column("name", "Name", sort="name"), Column("state", "State", sort="state"), Column("volume_name", "Volume", css="md"),
             Column("size_gb", "Size, GiB", sort="size_gb", css="num md"), Column("volume_type_name", "Type", css="lo"),
             Column("visibility", "Shared with", css="lo", hidden=True),
             Column("created_at", "Created", sort="created_at", css="md"), Column("expires_at", "Deleted", css="lo", hidden=True)],
    lifecycle=LIFECYCLE, quota={"snapshots": 1, "snapshot_gb": "size_gb"}, eager=_eager, aliases={"status": "state", "volume": "volume_id"},
    show={"volume_type_name": lambda v: v.volume_type.name, "progress_percent": lambda v: 100 if v.state == "completed" else 0,
          "shared_with_accounts": shared_accounts, "visibility": visibility},
    shapes={"shared_with_accounts": LIST_OF_IDS}, veil=veil_shares,
    usable=lambda v: v.is_usable, describe=lambda v: (f"{v.size_gb} GiB of {v.volume_name}", f"{v.created_at:%Y-%m-%d %H:%M} UTC"),
)  # fmt: skip
