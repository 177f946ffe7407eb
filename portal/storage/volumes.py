"""Volumes: disks that exist by themselves, from the request to the guest that sees them, and back to nothing."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.orm.interfaces import ORMOption

from portal.kernel import fields as f
from portal.kernel.authz import authorize, target_of
from portal.kernel.capabilities import capability
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import Effect, OneOf, lock_operations, operation, update_operation
from portal.kernel.errors import Conflict, InvalidRequest, Unavailable
from portal.kernel.ids import new_id
from portal.kernel.jobs import active_for
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.lookup import named, unseen
from portal.kernel.operations import also_changes, enqueue
from portal.kernel.resource import Column, ResourceType
from portal.security.encryption_keys import refuse_needless_key
from portal.security.key_models import EncryptionKey
from portal.storage import volume_steps as steps
from portal.storage.schedules import schedule_shown, volume_miss_snapshot, volume_set_snapshot_schedule
from portal.storage.volume_keys import check_encryption, check_use, encrypt, inherit, locked_among, refuse_locked
from portal.storage.volume_models import Snapshot, Volume, VolumeType, size_in_quota
from portal.storage.volume_types import DEFAULT_TYPE, limits_within

MOST_ATTACHED = 12
LIFECYCLE = Lifecycle(
    "creating",
    {
        "creating": frozenset({"available", "in-use", "error", "deleting", "cancelled"}),
        "available": frozenset({"attaching", "in-use", "resizing", "restoring", "trashed", "deleting", "error"}),
        "attaching": frozenset({"in-use", "available"}),
        "in-use": frozenset({"detaching", "resizing", "restoring", "available", "deleting", "error"}),
        "detaching": frozenset({"available", "in-use"}),
        "resizing": frozenset({"available", "in-use"}),
        "restoring": frozenset({"available", "in-use"}),
        "error": frozenset({"creating", "available", "in-use", "trashed", "deleting"}),
        "trashed": frozenset({"available", "deleting"}),
        "deleting": frozenset({"deleted", "error"}),
    },
    transient=frozenset({"creating", "attaching", "detaching", "resizing", "restoring", "deleting"}),
    ended=frozenset({"deleted", "cancelled"}),
    tones={"error": "bad", "trashed": "off"},
)
AT_REST = frozenset({"available", "in-use"})


def _default_type(ctx: Context) -> str:
    """What a volume is of whose type nobody says, in words."""
    vtype = ctx.db.get_one(VolumeType, DEFAULT_TYPE)
    return f"{vtype.name}: {vtype.default_iops:,} IOPS, up to {vtype.max_iops:,}; or as what it begins with"


TYPE_FIELD = f.FieldInfo(f.Ref("storage.volume_type"), "Type", "The pool that it lives in.", aliases=("volume_type_id",), none=_default_type)
SNAPSHOT_FIELD = f.FieldInfo(f.Ref("storage.snapshot"), "Snapshot", "Begin with what it holds.", aliases=("snapshot_id",))
RESTORE_FIELD = f.FieldInfo(f.Ref("storage.snapshot"), "Snapshot", "One of this volume.", aliases=("snapshot_id",))
SOURCE_FIELD = f.FieldInfo(f.Ref("storage.volume"), "Volume", "Begin as its copy.", aliases=("source_volume_id",))
KEY_FIELD = f.FieldInfo(
    f.Ref("security.key"),
    "Encryption key",
    'Choose one to encrypt the disk; "Encrypted" alone takes the project\'s default key.',
    aliases=("kms_key_id",),
    none="No key",
)
ImageId = Annotated[str | None, f.FieldInfo(f.Ref("compute.image"), "Image", "Begin with what it holds.", aliases=("image_id",))]
InstanceId = Annotated[str, f.FieldInfo(f.Ref("compute.instance"), "Instance", aliases=("instance_id",))]
Force = Annotated[
    bool, f.FieldInfo(f.Bool(), "Force", "For a guest that does not answer. If it does not let go within seconds, its instance loses its power and is booted "
                      "without the volume: what it has not written out is lost, on its other disks as well.")
]  # fmt: skip
Because = Annotated[str, f.FieldInfo(f.LongText(500), "Reason")]
MachineId = Annotated[str, f.FieldInfo(f.Line(64), "Instance")]
SizeGb = Annotated[
    int | None, f.FieldInfo(f.Int(1, 65_536), "Size", "Needed for an empty disk; otherwise as large as what it begins with if left empty.", "GiB",
                            example=10, none="such as 20")
]  # fmt: skip
NewSize = Annotated[int, f.FieldInfo(f.Int(1, 65_536), "New size", "In GiB; a volume only grows.", "GiB")]
Iops = Annotated[int | None, f.FieldInfo(f.Int(100, 1_000_000), "IOPS", "The most operations per second.", none="the type's")]
Throughput = Annotated[int | None, f.FieldInfo(f.Int(1, 100_000), "Throughput", "The most that is moved per second.", "MiB/s", none="the type's")]


@operation(
    Volume, "create", label="Create", needs="write", effect=Effect.CREATE, icon="plus", steps=steps.CREATE, holds="creating", settles="available",
    fails="error",
    cancelled="cancelled",
    one_of=OneOf("Begin with", "Nothing: an empty disk", {"snapshot": "A snapshot", "source_volume": "A copy of a volume", "image": "An image"}),
)  # fmt: skip
def volume_create(
    ctx: Context, *, name: str, snapshot: Annotated[Snapshot | None, SNAPSHOT_FIELD] = None,
    source_volume: Annotated[Volume | None, SOURCE_FIELD] = None, image: ImageId = None, size_gb: SizeGb = None,
    volume_type: Annotated[VolumeType | None, TYPE_FIELD] = None,
    iops: Iops = None, throughput_mbps: Throughput = None, delete_on_termination: bool = False, encryption_enabled: bool | None = None,
    kms_key: Annotated[EncryptionKey | None, KEY_FIELD] = None, description: str = "",
    tags: dict[str, str] | None = None,
) -> Volume:  # fmt: skip
    """Create a volume: empty, or with the content of a snapshot, of another volume or of an image."""
    refuse_needless_key(encryption_enabled, kms_key)
    sources = {"snapshot": snapshot, "source_volume": source_volume, "image": image}
    if len(given := [name for name, value in sources.items() if value]) > 1:
        raise InvalidRequest.fields({name: ["is one of several things to begin with. Choose one."] for name in given})
    found = named(ctx, "compute.image", image, field="image") if image else None
    origin: Any = snapshot or source_volume or found
    check_origin(snapshot, source_volume, found)
    vtype = volume_type or (origin.volume_type if origin is not None and found is None else ctx.db.get_one(VolumeType, DEFAULT_TYPE))
    size = size_gb if size_gb is not None else getattr(origin, "size_gb", None)
    if size is None:
        raise InvalidRequest.fields({"size_gb": ["is required for a volume that begins empty."]})
    if origin is not None and size < origin.size_gb:
        raise InvalidRequest.fields({"size_gb": [f"must be at least {origin.size_gb} GiB, as much as {origin.name} holds."]})
    check_size(vtype, size)
    refuse_without_room(ctx, vtype)
    allowed = limits_within(vtype, iops, throughput_mbps)
    row = Volume(
        name=name, description=description, tags=tags or {}, size_gb=size, volume_type=vtype, iops=allowed[0], throughput_mbps=allowed[1],
        delete_on_termination=delete_on_termination, snapshot_id=snapshot.id if snapshot else None,
        source_volume_id=source_volume.id if source_volume else None,
        image_id=found.id if found is not None else origin.image_id if origin is not None else None,
    )  # fmt: skip
    if origin is not None and found is None:
        check_encryption(origin, kms_key, wanted=bool(encryption_enabled) or kms_key is not None)
        inherit(ctx, row, origin)
    elif encryption_enabled or kms_key is not None:
        encrypt(ctx, row, kms_key)
    return row


def check_origin(snapshot: Snapshot | None, volume: Volume | None, image: Any) -> None:
    """Raise InvalidRequest for something that a volume cannot begin with now."""
    if snapshot is not None and not snapshot.is_usable:
        raise InvalidRequest.fields({"snapshot": [f"{snapshot.name} is {snapshot.state}; it has to be completed."]})
    if volume is not None and volume.state not in AT_REST:
        raise InvalidRequest.fields({"source_volume": [f"{volume.name} is {volume.state}; it has to be available or in use."]})
    if image is not None and (image.state not in {"available", "catalogue"} or not image.is_active):
        raise InvalidRequest.fields({"image": [f"{image.name} is {image.state if image.is_active else 'inactive'}. Choose one that is available."]})


def check_size(vtype: VolumeType, size_gb: int) -> None:
    """Raise InvalidRequest for a volume that its type does not offer."""
    if not vtype.is_active:
        raise InvalidRequest.fields({"volume_type": [f"{vtype.name} is not offered any more. Choose another type."]})
    if size_gb > vtype.max_size_gb:
        raise InvalidRequest.fields({"size_gb": [f"is more than {vtype.name} gives: at most {vtype.max_size_gb:,} GiB."]})


def refuse_without_room(ctx: Context, vtype: VolumeType) -> None:
    """Raise Unavailable where no volumes are kept, Conflict where the pool is full."""
    status = capability(ctx.db, "volumes")
    if status is None:
        raise Unavailable("No worker has reported yet that it can keep volumes. It starts with the portal; try again in a few seconds.")
    if not status.available:
        raise Unavailable(
            f"Volumes cannot be kept here: {status.reason} {status.remedy}".strip(), details={"reason": status.reason, "remedy": status.remedy}
        )
    refuse_full(ctx, vtype)


def refuse_full(ctx: Context, vtype: VolumeType) -> None:
    """Raise Conflict where a pool is known to be full. Disks are thin, so only what is free now counts."""
    status = capability(ctx.db, "volumes")
    room = status.facts.get(vtype.pool) if status is not None else None
    kept = ctx.settings.disk_reserved_gib
    if room is not None and room["free_gib"] <= kept:
        raise Conflict(
            f"Pool {vtype.pool} is full: {room['free_gib']:,} GiB are free, and {kept:,} GiB of them are kept free (DISK_RESERVED_GIB). "
            "Delete volumes or snapshots, or take another type; an administrator can free space there.",
            details={"pool": vtype.pool, "limit": max(room["free_gib"] - kept, 0), "used": 0, "requested": 1},
        )


@operation(Volume, "attach", label="Attach", needs="write", icon="plus", steps=steps.ATTACH, when={"available"}, holds="attaching", settles="in-use",
           fails="available", rests=steps.at_rest, finish=steps.attached, restore=steps.let_go,
           among=lambda _volume: {"instance": {"state": ("running", "stopped")}})  # fmt: skip
def volume_attach(ctx: Context, volume: Volume, *, instance: InstanceId) -> None:
    """Give the volume to an instance of its project, also while that runs; the guest finds it by its id."""
    found = named(ctx, "compute.instance", instance, field="instance", project_id=volume.project_id)
    # It is a change of the instance as well.
    also_changes(ctx, "compute.instance.update", found)
    if volume.delete_on_termination and found.owner_id != volume.owner_id:
        # Whoever terminates the instance deletes it for good.
        authorize(ctx, "storage.volume.delete", target_of(volume))
    if found.state not in {"running", "stopped"}:
        raise Conflict(f"{found.name} is {found.state}; it has to be running or stopped.", details={"state": found.state})
    if (job := active_for(ctx.db, found.id)) is not None:
        raise Conflict(f"{found.name} is busy: {job.label}. Wait until the job ends.", details={"job_id": job.id})
    having = (Volume.instance_id == found.id, Volume.deleted_at.is_(None))
    if (number := ctx.db.scalar(select(func.count()).select_from(Volume).where(*having)) or 0) >= MOST_ATTACHED:
        raise Conflict(f"{found.name} has {number} volumes, the most that an instance can have.", details={"limit": MOST_ATTACHED, "used": number})
    check_use(ctx, volume)
    volume.instance_id = found.id


@operation(Volume, "detach", label="Detach", needs="write", icon="x", steps=steps.DETACH, when={"in-use"}, holds="detaching",
           settles="available", fails="in-use", rests=steps.at_rest, finish=steps.let_go)  # fmt: skip
def volume_detach(ctx: Context, volume: Volume, *, force: Force = False) -> None:
    """Take the volume from its instance. Unmount it in the guest first: what was not written out is lost."""
    if volume.is_root:
        raise Conflict(
            f"{volume.name} is the root disk of its instance and goes with it. To keep what it holds, take a snapshot, or let it stay "
            "when the instance is terminated (delete_on_termination).",
            details={"is_root": True},
        )
    if (instance := ctx.db.get(ctx.registry.model("compute.instance"), volume.instance_id)) is not None:
        # It is a change of the instance as well.
        also_changes(ctx, "compute.instance.update", instance)
        if force:
            _check_power_cut(ctx, volume, instance)


def _check_power_cut(ctx: Context, volume: Volume, instance: Any) -> None:
    """Raise Forbidden or Conflict where the instance must not lose its power, or could not be booted again."""
    also_changes(ctx, "compute.instance.reboot", instance)
    if (job := active_for(ctx.db, instance.id)) is not None:
        raise Conflict(f"{instance.name} is busy: {job.label}. Wait until the job ends.", details={"job_id": job.id})
    refuse_locked(ctx, *(each for each in locked_among(ctx, instance.id) if each.id != volume.id))


def _tell_instance(ctx: Context, volume: Volume) -> None:
    """Keep the size of its root disk with an instance."""
    if volume.is_root and volume.instance_id is not None:
        model = ctx.registry.model("compute.instance")
        ctx.db.execute(update(model).where(model.id == volume.instance_id).values(root_volume_size_gb=volume.size_gb))


@operation(Volume, "resize", label="Grow", needs="write", icon="sliders", steps=steps.RESIZE, when=AT_REST, holds="resizing", settles="available",
           fails="available", rests=steps.at_rest, finish=steps.grown, restore=steps.not_grown, follow=_tell_instance,
           present=lambda row: {"size_gb": row.size_gb})  # fmt: skip
def volume_resize(ctx: Context, volume: Volume, *, size_gb: NewSize) -> None:
    """Make the volume larger, also while a guest uses it; it never shrinks."""
    if size_gb <= volume.size_gb:
        raise InvalidRequest.fields({"size_gb": [f"must be more than {volume.size_gb} GiB: a volume only grows."]})
    check_size(volume.volume_type, size_gb)
    refuse_without_room(ctx, volume.volume_type)
    refuse_locked(ctx, volume)
    volume.resize_to_gb = size_gb


@operation(Volume, "restore", label="Restore", needs="write", icon="redo", danger=True, steps=steps.RESTORE, when=AT_REST, holds="restoring",
           settles="available", fails="available", rests=steps.at_rest, finish=steps.restored, restore=steps.restored,
           among=lambda volume: {"snapshot": {"volume_id": (volume.id,), "state": ("completed",)}})  # fmt: skip
def volume_restore(ctx: Context, volume: Volume, *, snapshot: Annotated[Snapshot, RESTORE_FIELD]) -> None:
    """Bring back what the volume held when a snapshot was taken; what was written since is lost. Its instance must be stopped."""
    check_origin(snapshot, None, None)
    if snapshot.volume_id != volume.id or snapshot.volume_type_id != volume.volume_type_id:
        raise InvalidRequest.fields({"snapshot": [f"{snapshot.name} is not of this volume. Make a new volume from it."]})
    if volume.instance_id is not None:
        model = ctx.registry.model("compute.instance")
        instance = ctx.db.get_one(model, volume.instance_id)
        if instance.state != "stopped":
            raise Conflict(f"{instance.name} is {instance.state} and has the volume. Stop it or detach the volume first.")
    check_use(ctx, volume)
    refuse_read(ctx, volume.id)
    volume.restoring_id = snapshot.id


@operation(Volume, "apply_limits", label="Set limits", needs="platform", steps=steps.LIMIT, when=AT_REST, settles="available", fails="available",
           rests=steps.at_rest, internal=True, while_locked=True)  # fmt: skip
def volume_apply_limits(ctx: Context, volume: Volume) -> None:
    """Let a running machine use the volume as fast as its record says."""
    del ctx, volume


@operation(Volume, "refit", label="Bring its instance up to date", needs="platform", steps=steps.REFIT, when={"in-use"}, settles="in-use",
           fails="in-use", rests=steps.at_rest, internal=True, while_locked=True)  # fmt: skip
def volume_refit(ctx: Context, volume: Volume, *, reason: Because) -> None:
    """Make the volumes of its instance those that it should have: the host says otherwise."""
    del ctx, volume, reason


def _check_limits(ctx: Context, volume: Volume, changes: dict[str, Any]) -> None:
    if changes.get("delete_on_termination") and not volume.delete_on_termination:
        # Whoever terminates its instance deletes it for good.
        authorize(ctx, "storage.volume.delete", target_of(volume))
    limits_within(volume.volume_type, changes.get("iops"), changes.get("throughput_mbps"))


def _queue_limits(ctx: Context, volume: Volume, changes: Mapping[str, Any]) -> None:
    if {"iops", "throughput_mbps"} & set(changes) and volume.instance_id and volume.state == "in-use" and active_for(ctx.db, volume.id) is None:
        ctx.also_queued.append(enqueue(ctx, volume_apply_limits, ctx.registry.of(Volume), volume, {}))


def refuse_attached(volume: Volume) -> None:
    """Raise Conflict for a volume that an instance has."""
    if volume.instance_id is not None:
        raise Conflict(f"An instance has {volume.name}. Detach it or terminate the instance first.", details={"instance_id": volume.instance_id})


@operation(Volume, "trash", label="Move to trash", needs="delete", icon="trash", danger=True, bulk=True, when={"available", "error"})
def volume_trash(ctx: Context, volume: Volume) -> None:
    """Put the volume into the trash, where it can be recovered for a while; it counts until it is gone."""
    refuse_attached(volume)
    volume.state, volume.state_reason, volume.state_at = "trashed", "", now()
    volume.trash_until = now() + timedelta(days=ctx.settings.volume_trash_days)


@operation(Volume, "recover", label="Recover", needs="write", icon="redo", bulk=True, when={"trashed"})
def volume_recover(ctx: Context, volume: Volume) -> None:
    """Take the volume out of the trash."""
    del ctx
    volume.state, volume.state_at, volume.trash_until = "available", now(), None


@operation(Volume, "delete", label="Delete for good", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True,
           steps=steps.DELETE, when={"available", "error", "trashed"}, holds="deleting", settles="deleted", fails="error")  # fmt: skip
def volume_delete(ctx: Context, volume: Volume) -> None:
    """Delete the volume for good; its snapshots stay."""
    refuse_attached(volume)
    refuse_read(ctx, volume.id)


@operation(Volume, "expire", label="Delete in time", needs="platform", effect=Effect.REMOVE, steps=steps.DELETE, when={"trashed"},
           holds="deleting", settles="deleted", fails="error", internal=True)  # fmt: skip
def volume_expire(ctx: Context, volume: Volume) -> None:
    """Delete for good what was in the trash for long enough; what was recovered since somebody looked stays, and what was thrown away again."""
    if volume.trash_until is None or volume.trash_until > now():
        raise Conflict(f"{volume.name} stays in the trash for longer.")
    refuse_read(ctx, volume.id)


def reader_of(session: Session, *volume_ids: str) -> str:
    """What is being made of what volumes hold now, and has yet to read it, in words; empty if nothing is."""
    taken = (Snapshot.volume_id.in_(volume_ids), Snapshot.copy_of_id.is_(None), Snapshot.state == "pending", Snapshot.deleted_at.is_(None))
    if session.scalars(select(Snapshot.id).where(*taken).limit(1)).first() is not None:
        return "A snapshot of the volume is being taken."
    copied = (Volume.source_volume_id.in_(volume_ids), Volume.state == "creating", Volume.deleted_at.is_(None))
    return "A copy of the volume is being made." if session.scalars(select(Volume.id).where(*copied).limit(1)).first() is not None else ""


def refuse_read(ctx: Context, *volume_ids: str) -> None:
    """Raise Conflict while what volumes hold has yet to be read: it must not be another thing by then."""
    if reader := reader_of(ctx.db, *volume_ids):
        raise Conflict(f"{reader} Wait until that is done.")


def root_volume(ctx: Context, instance: Any) -> Volume:
    """The row of the volume that a machine boots from."""
    vtype = ctx.db.get_one(VolumeType, DEFAULT_TYPE)
    iops, throughput_mbps = limits_within(vtype, None, None)
    # Named by itself, not by its instance: whoever may not see that one learns nothing from what is told of its volume.
    own = new_id("vol")
    return Volume(
        id=own, name=own, description="", tags={}, size_gb=instance.root_volume_size_gb, volume_type=vtype, iops=iops,
        throughput_mbps=throughput_mbps, instance_id=instance.id, is_root=True, delete_on_termination=True, image_id=instance.image_id or instance.image.id,
        owner_id=instance.owner_id, attached_at=now(),
    )  # fmt: skip


@operation(Volume, "adopt", label="Adopt", needs="platform", effect=Effect.CREATE, internal=True)
def volume_adopt(ctx: Context, *, instance: MachineId) -> Volume:
    """Make the disk of an instance that an earlier version made its root volume."""
    found = ctx.db.get_one(ctx.registry.model("compute.instance"), instance, with_for_update=True)
    row = root_volume(ctx, found)
    row.state = "in-use"
    return row


def _eager() -> list[ORMOption]:
    return [joinedload(Volume.volume_type)]


def _veil(ctx: Context, rows: Sequence[Volume]) -> Mapping[str, Mapping[str, Any]]:
    """Instances are told to those who may see them."""
    instance = ctx.registry.model("compute.instance")
    hidden = unseen(ctx, instance, instance.id, instance.id.in_([row.instance_id for row in rows if row.instance_id]))
    return {row.id: {"instance_id": None} for row in rows if row.instance_id in hidden}


def _time_left(volume: Volume) -> str:
    """How long a volume stays in the trash."""
    if volume.state != "trashed" or volume.trash_until is None:
        return ""
    left = max(volume.trash_until - now(), timedelta())
    hours = int(left.total_seconds() // 3600)
    return f"{left.days} day{'s' if left.days != 1 else ''} left" if left.days else f"{hours} h left" if hours else "goes within the hour"


def _hourly_cost(volume: Volume) -> float | None:
    return volume.size_gb * volume.volume_type.hourly_cost_usd or None


VOLUME = ResourceType(
    Volume, service="storage", name="volume", collection="volumes", prefix="vol", label="Volume", plural="Volumes", icon="storage",
    summary="Disks that exist by themselves; instances are given them.",
    operations=[volume_create, volume_attach, volume_detach, volume_resize, volume_restore, volume_trash, volume_recover, volume_delete,
                update_operation(Volume, before=_check_limits, along=_queue_limits), *lock_operations(Volume), volume_set_snapshot_schedule,
                volume_miss_snapshot, volume_apply_limits, volume_adopt, volume_refit, volume_expire],
    columns=[Column("name", "Name", sort="name"), Column("state", "State", sort="state"), Column("size_gb", "Size, GiB", sort="size_gb", css="num md"),
             Column("volume_type_name", "Type", css="md"), Column("instance_id", "Instance", css="md"), Column("iops", "IOPS", css="num lo"),
             Column("throughput_mbps", "MiB/s", css="num lo", hidden=True), Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE, quota={"volumes": 1, "volume_gb": size_in_quota}, eager=_eager, goes_with="compute.instance",
    show={"volume_type_name": lambda v: v.volume_type.name, "device": lambda v: f"/dev/disk/by-id/virtio-{v.id}",
          "snapshot_schedule": schedule_shown},
    shapes={"snapshot_schedule": {"type": ["object", "null"]}},
    aliases={"status": "state", "volume_type": "volume_type_id", "attached_to_instance": "instance_id", "attached_to": "instance_id"},
    hourly_cost_usd=_hourly_cost, state_detail=_time_left, usable=lambda v: v.state in AT_REST, veil=_veil,
    describe=lambda v: (f"{v.size_gb} GiB, {v.volume_type.name}", v.state),
)  # fmt: skip
