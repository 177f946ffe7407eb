"""Instances: virtual machines, from the request to the guest that boots, and back to nothing.

The row says what is desired; `instance_steps` brings the host there and `reconcile` notices when it is elsewhere.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

from sqlalchemy.orm import Mapped, joinedload, relationship
from sqlalchemy.orm.interfaces import ORMOption

from portal.compute import instance_steps as steps
from portal.compute.capacity import refuse_if_full
from portal.compute.flavors import Flavor
from portal.compute.images import Image
from portal.compute.key_pairs import KeyPair, parse_public_key
from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.db import Base, now
from portal.kernel.declare import Created, Effect, lock_operations, operation, update_operation
from portal.kernel.errors import InvalidRequest
from portal.kernel.guests import Placement
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.resource import Column, ProjectOwned, ResourceType, Stateful
from portal.kernel.rows import set_state

DEFAULT_VPC = "vpc-12345678"
MAX_COUNT = 20
NAME_MAX = 255
LOCKED = "Refuse every change until it is unlocked, attaching and detaching included."
HEAL_WINDOW = timedelta(minutes=10)

LIFECYCLE = Lifecycle(
    "pending",
    {
        "pending": frozenset({"running", "error", "cancelled"}),
        "running": frozenset({"stopping", "rebooting", "rebuilding", "terminating", "starting", "stopped", "error"}),
        "stopping": frozenset({"stopped", "error"}),
        "stopped": frozenset({"starting", "stopping", "resizing", "rebuilding", "terminating", "error"}),
        "starting": frozenset({"running", "error"}),
        "rebooting": frozenset({"running", "error"}),
        "resizing": frozenset({"stopped", "error"}),
        "rebuilding": frozenset({"running", "error"}),
        "error": frozenset({"running", "stopped", "starting", "stopping", "rebooting", "resizing", "rebuilding", "terminating", "pending"}),
        "terminating": frozenset({"terminated", "error"}),
    },
    transient=frozenset({"pending", "stopping", "starting", "rebooting", "resizing", "rebuilding", "terminating"}),
    ended=frozenset({"terminated", "cancelled"}),
    tones={"stopped": "off", "error": "bad"},
)


class Instance(ProjectOwned, Stateful, Base):
    """A virtual machine."""

    __tablename__ = "instances"

    flavor_id: Mapped[str] = f.field(f.Ref("compute.flavor"), label="Flavor", references="flavors.id", filterable=True)
    rebuild_to_id: Mapped[str | None] = f.field(f.Ref("compute.image"), label="Rebuilding from", nullable=True, exposed=False)
    resize_to_id: Mapped[str | None] = f.field(f.Ref("compute.flavor"), label="Resizing to", references="flavors.id", nullable=True, exposed=False)
    image_id: Mapped[str] = f.field(f.Ref("compute.image"), label="Image", references="images.id", filterable=True)
    key_pair_id: Mapped[str | None] = f.field(f.Ref("compute.key_pair"), label="Key pair", references="key_pairs.id", nullable=True)
    public_key: Mapped[str] = f.field(f.LongText(16384), label="Public key", default="", help="A key for this instance alone, in OpenSSH form.")
    user_data: Mapped[str] = f.field(
        f.LongText(16384),
        label="User data",
        default="",
        exposed=False,
        help="A script (#!…) or cloud-init document for the first boot, at most 16 KiB.",
    )
    vpc_id: Mapped[str] = f.field(f.Ref("networking.vpc"), label="VPC", default=DEFAULT_VPC)
    subnet_id: Mapped[str | None] = f.field(f.Ref("networking.subnet"), label="Subnet", nullable=True)
    private_ip: Mapped[str | None] = f.field(f.Line(15), label="Private address", nullable=True)
    public_ip: Mapped[str | None] = f.field(f.Line(15), label="Public address", nullable=True)
    root_volume_size_gb: Mapped[int] = f.field(f.Int(1, 16_384), label="Root disk", unit="GiB")
    enable_monitoring: Mapped[bool] = f.field(
        f.Bool(), label="Monitoring", default=True, editable=True, help="Measure CPU, memory, disk and network."
    )
    enable_termination_protection: Mapped[bool] = f.field(
        f.Bool(), label="Termination protection", default=False, editable=True, help="Refuse to terminate until this is switched off."
    )
    desired_power: Mapped[str] = f.field(f.Choice(("running", "stopped")), label="Desired", default="running", exposed=False)
    heals: Mapped[int] = f.field(f.Int(0, 2**31 - 1), label="Restarts by the portal", default=0, exposed=False)
    healed_at: Mapped[datetime | None] = f.field(f.Moment(), label="Last restart by the portal", nullable=True, exposed=False)
    launch_time: Mapped[datetime | None] = f.field(f.Moment(), label="Launched", nullable=True)
    stop_time: Mapped[datetime | None] = f.field(f.Moment(), label="Stopped", nullable=True)
    termination_time: Mapped[datetime | None] = f.field(f.Moment(), label="Terminated", nullable=True)

    flavor: Mapped[Flavor] = relationship(foreign_keys=[flavor_id])
    rebuild_to: Mapped[Image | None] = relationship(primaryjoin="foreign(Instance.rebuild_to_id) == Image.id")
    resize_to: Mapped[Flavor | None] = relationship(foreign_keys=[resize_to_id])
    image: Mapped[Image] = relationship(foreign_keys=[image_id])
    key_pair: Mapped[KeyPair | None] = relationship(foreign_keys=[key_pair_id])


def placement(vpc_id: str | None, subnet_id: str | None, groups: Sequence[str] | None, private_ip: str) -> Placement:
    """Where a new instance is to be."""
    return Placement(vpc_id or "", subnet_id or "", tuple(groups or ()), private_ip)


def connect(ctx: Context, instance: Instance, inputs: Mapping[str, Any]) -> None:
    """Give a new instance its first network interface and its root volume, in the transaction in which it is made."""
    if ctx.registry.networks is not None:
        wanted = placement(inputs.get("vpc_id"), inputs.get("subnet_id"), inputs.get("security_groups"), inputs.get("private_ip") or "")
        ctx.registry.networks.connect(ctx, instance, wanted)
    if ctx.registry.volumes is not None:
        ctx.registry.volumes.begin(ctx, instance, encrypted=bool(inputs.get("root_volume_encrypted")))


ForceFlag = Annotated[bool, f.FieldInfo(f.Bool(), "Force", "Pull the plug instead of asking the guest to shut down.")]
RebootType = Annotated[str, f.FieldInfo(f.Choice(("soft", "hard")), "Type", "soft asks the guest, hard pulls the plug.")]
Count = Annotated[int, f.FieldInfo(f.Int(1, MAX_COUNT), "Number of instances", f"1 to {MAX_COUNT}; several get -1, -2, … after their name.")]
Encrypted = Annotated[bool, f.FieldInfo(f.Bool(), "Encrypt the root disk", "With the project's default key.")]
Because = Annotated[str, f.FieldInfo(f.LongText(500), "Reason")]
FLAVOR_FIELD = f.FieldInfo(f.Ref("compute.flavor"), "Flavor", "vCPU, memory and disk.", aliases=("flavor_id", "instance_type"))
IMAGE_FIELD = f.FieldInfo(f.Ref("compute.image"), "Image", "The disk it starts from.", aliases=("image_id",))
METADATA_FIELD = f.FieldInfo(f.TextMap(), "Metadata", aliases=("metadata",))
VPC_FIELD = f.FieldInfo(f.Ref("networking.vpc"), "VPC", "The project's default network if left empty.")
SUBNET_FIELD = f.FieldInfo(f.Ref("networking.subnet"), "Subnet", "The first of the VPC if left empty.", aliases=("subnet",))
GROUPS_FIELD = f.FieldInfo(f.RefList("networking.security_group"), "Security groups", "The VPC's default group if left empty.")
ADDRESS_FIELD = f.FieldInfo(f.Line(15), "Private address", "The lowest free one of the subnet if left empty.")
KEY_PAIR_FIELD = f.FieldInfo(f.Ref("compute.key_pair"), "Key pair", "The SSH key that the guest lets in.", aliases=("key_pair_id", "key_name"))


@operation(
    Instance, "create", label="Create", needs="write", effect=Effect.CREATE, icon="plus", steps=steps.CREATE, settles="running", fails="error",
    cancelled="cancelled", finish=steps.launched, along=connect,
)  # fmt: skip
def instance_create(
    ctx: Context, *, name: str, flavor: Annotated[Flavor, FLAVOR_FIELD], image: Annotated[Image, IMAGE_FIELD],
    key_pair: Annotated[KeyPair | None, KEY_PAIR_FIELD] = None, public_key: str = "", root_volume_size_gb: int | None = None, user_data: str = "",
    description: str = "", tags: dict[str, str] | None = None, extra: Annotated[dict[str, str] | None, METADATA_FIELD] = None,
    vpc_id: Annotated[str | None, VPC_FIELD] = None, subnet_id: Annotated[str | None, SUBNET_FIELD] = None,
    security_groups: Annotated[list[str] | None, GROUPS_FIELD] = None, private_ip: Annotated[str, ADDRESS_FIELD] = "",
    enable_monitoring: bool = True, enable_termination_protection: bool = False, root_volume_encrypted: Encrypted = False, count: Count = 1,
) -> Created:  # fmt: skip
    """Create virtual machines and boot them."""
    # What `connect` makes of it.
    del root_volume_encrypted
    check_image(image)
    if not flavor.is_active:
        raise InvalidRequest.fields({"flavor": [f"{flavor.name} is retired. Choose another flavor."]})
    if ctx.registry.networks is not None:
        ctx.registry.networks.check(ctx, placement(vpc_id, subnet_id, security_groups, private_ip), count=count)
    if flavor.gpu_count:
        raise InvalidRequest.fields({"flavor": ["This host has no GPUs to pass on."]})
    size_gb = disk_size(image, root_volume_size_gb if root_volume_size_gb is not None else max(flavor.disk_gb, image.size_gb))
    if public_key:
        public_key = parse_public_key(public_key)[0]
    refuse_if_full(ctx, flavor, count=count, disk_gb=size_gb)
    names = [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]
    if len(names[-1]) > NAME_MAX:
        raise InvalidRequest.fields({"name": [f"must have at most {NAME_MAX - len(f'-{count}')} characters, since each gets its number."]})
    return Created([
        Instance(
            name=each, description=description, tags=dict(tags or {}), extra=dict(extra or {}), flavor=flavor, image=image, key_pair=key_pair,
            public_key=public_key, user_data=user_data, root_volume_size_gb=size_gb, vpc_id=vpc_id or DEFAULT_VPC, enable_monitoring=enable_monitoring,
            enable_termination_protection=enable_termination_protection,
        )
        for each in names
    ])  # fmt: skip


def let_go(ctx: Context, instance: Instance) -> None:
    """Give the addresses and volumes of an instance back that is gone."""
    if ctx.registry.networks is not None:
        ctx.registry.networks.disconnect(ctx, instance)
    if ctx.registry.volumes is not None:
        ctx.registry.volumes.leave(ctx, instance)


def _renamed(ctx: Context, instance: Instance, changes: Mapping[str, Any]) -> None:
    if "name" in changes and ctx.registry.networks is not None:
        ctx.registry.networks.renamed(ctx, instance.id)


def check_image(image: Image) -> None:
    """Raise InvalidRequest unless machines can be made from the image now."""
    if image.state not in {"available", "catalogue"} or not image.is_active:
        what = image.state.replace("_", " ") if image.is_active else "inactive"
        raise InvalidRequest.fields({"image": [f"{image.name} is {what}. Choose an image that is available."]})


def disk_size(image: Image, size_gb: int) -> int:
    """The size of a root disk. Raises InvalidRequest if the image does not fit on it."""
    if size_gb < image.size_gb:
        raise InvalidRequest.fields({"root_volume_size_gb": [f"{image.name} needs at least {image.size_gb} GiB."]})
    return size_gb


@operation(Instance, "start", label="Start", needs="write", icon="play", bulk=True, steps=steps.START, when={"stopped", "error"}, holds="starting",
           settles="running", fails="error", finish=steps.launched)  # fmt: skip
def instance_start(ctx: Context, instance: Instance) -> None:
    """Boot a stopped machine."""
    _refuse_locked(ctx, instance)
    refuse_if_full(ctx, instance.flavor, count=1, disk_gb=0)
    instance.desired_power, instance.heals = "running", 0


@operation(Instance, "stop", label="Stop", needs="write", icon="stop", bulk=True, steps=steps.STOP, when={"running", "error"}, holds="stopping",
           settles="stopped", fails="error", finish=steps.stopped)  # fmt: skip
def instance_stop(ctx: Context, instance: Instance, *, force: ForceFlag = False) -> None:
    """Ask the guest to shut down, and pull the plug if it does not."""
    del ctx, force
    instance.desired_power = "stopped"


@operation(Instance, "reboot", label="Reboot", needs="write", icon="redo", bulk=True, steps=steps.REBOOT, when={"running"}, holds="rebooting",
           settles="running", fails="error", finish=steps.launched)  # fmt: skip
def instance_reboot(ctx: Context, instance: Instance, *, type: RebootType = "soft") -> None:  # noqa: A002 - the name in the API
    """Shut the guest down and boot it again."""
    del type
    _refuse_locked(ctx, instance)


def _refuse_locked(ctx: Context, instance: Instance) -> None:
    """Raise Conflict for a machine that could not open one of its volumes."""
    if ctx.registry.volumes is not None:
        ctx.registry.volumes.refuse_locked(ctx, instance.id)


def _refuse_read(ctx: Context, instance: Instance) -> None:
    """Raise Conflict while what would be lost with the machine has yet to be read."""
    if ctx.registry.volumes is not None:
        ctx.registry.volumes.refuse_read(ctx, instance.id)


@operation(Instance, "resize", label="Resize", needs="write", icon="sliders", steps=steps.RESIZE, when={"stopped"}, holds="resizing",
           settles="stopped", fails="error", finish=steps.resized, restore=steps.not_resized)  # fmt: skip
def instance_resize(ctx: Context, instance: Instance, *, flavor: Annotated[Flavor, FLAVOR_FIELD]) -> None:
    """Change the flavor of a stopped machine; its disk keeps its size."""
    if flavor.id == instance.flavor_id:
        raise InvalidRequest.fields({"flavor": [f"{instance.name} has this flavor already."]})
    if not flavor.is_active or flavor.gpu_count:
        raise InvalidRequest.fields({"flavor": [f"{flavor.name} cannot be had here. Choose another flavor."]})
    refuse_if_full(ctx, flavor, count=1, disk_gb=0)
    instance.resize_to = flavor


@operation(Instance, "rebuild", label="Rebuild", needs="write", icon="image", danger=True, steps=steps.REBUILD, when={"running", "stopped", "error"},
           holds="rebuilding", settles="running", fails="error", finish=steps.rebuilt, restore=steps.not_rebuilt)  # fmt: skip
def instance_rebuild(ctx: Context, instance: Instance, *, image: Annotated[Image, IMAGE_FIELD]) -> None:
    """Throw the root disk away and make it anew from an image; the id, name and keys stay. Where the image cannot be had, the disk stays, too."""
    check_image(image)
    disk_size(image, instance.root_volume_size_gb)
    _refuse_read(ctx, instance)
    instance.rebuild_to, instance.desired_power, instance.heals = image, "running", 0


@operation(Instance, "terminate", label="Terminate", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True,
           steps=steps.TERMINATE, when={"running", "stopped", "error"}, holds="terminating", settles="terminated", fails="error",
           finish=steps.terminated, unless="enable_termination_protection")  # fmt: skip
def instance_terminate(ctx: Context, instance: Instance) -> None:
    """Remove the machine for good, with the volumes that go with it; its root disk is one of them unless that was changed."""
    _refuse_read(ctx, instance)


@operation(Instance, "heal", label="Restart", needs="platform", steps=steps.START, when={"running", "error"}, holds="starting", settles="running",
           fails="error", finish=steps.launched, internal=True, while_locked=True)  # fmt: skip
def instance_heal(ctx: Context, instance: Instance, *, reason: Because) -> None:
    """Boot a machine that should run and does not."""
    del ctx, reason
    _count_heal(instance)


@operation(Instance, "replug", label="Plug its network cards in again", needs="platform", steps=steps.REPLUG, when={"running"}, holds="starting",
           settles="running", fails="running", internal=True, while_locked=True)  # fmt: skip
def instance_replug(ctx: Context, instance: Instance, *, reason: Because) -> None:
    """Plug network cards in again that have lost their place on the host while the machine runs."""
    del ctx, reason
    _count_heal(instance)


def _count_heal(instance: Instance) -> None:
    is_again = instance.healed_at is not None and now() - instance.healed_at < HEAL_WINDOW
    instance.heals, instance.healed_at = instance.heals + 1 if is_again else 1, now()


@operation(Instance, "halt", label="Stop", needs="platform", steps=steps.STOP, when={"stopped"}, holds="stopping", settles="stopped", fails="error",
           finish=steps.stopped, internal=True, while_locked=True)  # fmt: skip
def instance_halt(ctx: Context, instance: Instance, *, reason: Because) -> None:
    """Stop a machine that runs although it should not."""
    del ctx, instance, reason


@operation(Instance, "settle", label="Settle", needs="platform", when={"running", "stopped", "error"}, internal=True, while_locked=True)
def instance_settle(
    ctx: Context, instance: Instance, *, state: Annotated[str, f.FieldInfo(f.Choice(("running", "stopped", "error")), "State")], reason: Because
) -> None:
    """Say what the host says: the machine is in another state than the record."""
    set_state(ctx.registry.of(Instance), instance, state, reason)
    if state == "stopped":
        instance.desired_power, instance.stop_time = "stopped", now()


def cpus_of(instance: Instance) -> int:
    """VCPU that the quota counts: while a resize is under way, the larger of both sizes."""
    return max(instance.flavor.vcpus, instance.resize_to.vcpus if instance.resize_to else 0)


def memory_of(instance: Instance) -> int:
    """GiB of memory that the quota counts, rounded up."""
    return -(-max(instance.flavor.memory_mb, instance.resize_to.memory_mb if instance.resize_to else 0) // 1024)


def _eager() -> list[ORMOption]:
    return [
        joinedload(Instance.flavor),
        joinedload(Instance.image),
        joinedload(Instance.key_pair),
        joinedload(Instance.resize_to),
        joinedload(Instance.rebuild_to),
    ]


INSTANCE = ResourceType(
    Instance, service="compute", name="instance", collection="instances", prefix="i", label="Instance", plural="Instances", icon="compute",
    summary="Virtual machines.",
    operations=[instance_create, instance_start, instance_stop, instance_reboot, instance_resize, instance_rebuild, instance_terminate,
                update_operation(Instance, along=_renamed), *lock_operations(Instance, LOCKED), instance_heal, instance_replug, instance_halt,
                instance_settle],
    columns=[Column("name", "Name", sort="name"), Column("state", "State", sort="state"), Column("flavor_name", "Flavor", css="md"),
             Column("private_ip", "Address", css="mono lo"), Column("public_ip", "Public address", css="mono lo", hidden=True),
             Column("image_name", "Image", css="lo"), Column("key_pair_name", "Key pair", css="lo", hidden=True),
             Column("root_volume_size_gb", "Root disk", css="num lo", hidden=True), Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE,
    quota={"instances": 1, "cpus": cpus_of, "memory_gb": memory_of, "storage_gb": "root_volume_size_gb"},
    show={"flavor_name": lambda v: v.flavor.name, "image_name": lambda v: v.image.name,
          "key_pair_name": lambda v: v.key_pair.name if v.key_pair else None,
          "vcpus": lambda v: v.flavor.vcpus, "memory_mb": lambda v: v.flavor.memory_mb},
    eager=_eager, aliases={"status": "state", "flavor": "flavor_id", "image": "image_id", "key_pair": "key_pair_id"},
    extra_permissions={"console": "write"}, hourly_cost_usd=lambda v: v.flavor.hourly_cost_usd, at_end=let_go,
)  # fmt: skip
