"""Flavors: the sizes that instances come in."""

from typing import Annotated

from sqlalchemy import select
from sqlalchemy.orm import Mapped, Session

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.db import Base
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import Conflict
from portal.kernel.resource import Column, PlatformOwned, ResourceType

GPU_TYPES = ("", "T4", "V100", "A100")


class Flavor(PlatformOwned, Base):
    """A machine type: vCPU, memory, disk and price."""

    __tablename__ = "flavors"

    vcpus: Mapped[int] = f.field(f.Int(1, 256), label="vCPU", sortable=True, filterable=True)
    memory_mb: Mapped[int] = f.field(f.Int(128, 4_194_304), label="Memory", unit="MiB", sortable=True)
    disk_gb: Mapped[int] = f.field(f.Int(1, 65_536), label="Disk", unit="GiB", sortable=True)
    network_bandwidth_gbps: Mapped[float] = f.field(f.Number(0.1, 400), label="Network", unit="Gbit/s", default=1.0)
    gpu_count: Mapped[int] = f.field(f.Int(0, 16), label="GPUs", default=0)
    gpu_type: Mapped[str] = f.field(f.Choice(GPU_TYPES), label="GPU type", default="")
    hourly_cost_usd: Mapped[float] = f.field(f.Number(0, 10_000), label="Price", unit="USD/h", default=0.0, editable=True, sortable=True)
    is_gpu: Mapped[bool] = f.field(f.Bool(), label="Has GPUs", default=False, filterable=True)
    is_active: Mapped[bool] = f.field(f.Bool(), label="Active", default=True, editable=True, filterable=True)

    def size_text(self) -> str:
        """`2 / 4 GiB`."""
        memory = self.memory_mb / 1024
        return f"{self.vcpus} / {memory:g} GiB"


FlavorId = Annotated[
    str,
    f.FieldInfo(
        f.Line(64, r"^[a-z][a-z0-9]{0,15}(-[a-z0-9]+){1,4}$", 3, "must be lower case with dashes, such as t3-micro"),
        "Flavor id",
        "With dashes, such as t3-micro.",
    ),
]


@operation(Flavor, "create", label="Create", needs="platform", effect=Effect.CREATE)
def flavor_create(
    ctx: Context, *, flavor_id: FlavorId, name: str, vcpus: int, memory_mb: int, disk_gb: int, description: str = "",
    network_bandwidth_gbps: float = 1.0, gpu_count: int = 0, gpu_type: str = "", hourly_cost_usd: float = 0.0,
) -> Flavor:  # fmt: skip
    """Add a machine type."""
    if ctx.db.get(Flavor, flavor_id) is not None:
        raise Conflict(f"There is or was a flavor {flavor_id}. Choose another id.", details={"flavor_id": ["is taken"]})
    return Flavor(
        id=flavor_id, name=name, description=description, vcpus=vcpus, memory_mb=memory_mb, disk_gb=disk_gb, gpu_count=gpu_count, gpu_type=gpu_type,
        network_bandwidth_gbps=network_bandwidth_gbps, hourly_cost_usd=hourly_cost_usd, is_gpu=gpu_count > 0,
    )  # fmt: skip


@operation(Flavor, "delete", label="Retire", needs="platform", effect=Effect.REMOVE, icon="trash", danger=True)
def flavor_delete(ctx: Context, flavor: Flavor) -> None:
    """Retire a machine type that no instance uses."""
    instance = ctx.registry.model("compute.instance")
    users = ctx.db.scalars(select(instance.name).where(instance.flavor_id == flavor.id, instance.deleted_at.is_(None)).limit(3)).all()
    if users:
        raise Conflict(f"{flavor.name} is used by {', '.join(users)}. Resize or terminate them first, or make the flavor inactive.")


FLAVOR = ResourceType(
    Flavor, service="compute", name="flavor", collection="flavors", prefix="flv", label="Flavor", plural="Flavors", icon="sliders",
    summary="The sizes that instances come in: vCPU, memory, disk and price.",
    operations=[flavor_create, flavor_delete, update_operation(Flavor, needs="platform")],
    columns=[Column("name", "Name", sort="name"), Column("vcpus", "vCPU", sort="vcpus", css="num"),
             Column("memory", "Memory", sort="memory_mb", css="num"), Column("disk", "Disk", sort="disk_gb", css="num md"),
             Column("gpu", "GPU", css="lo"),
             Column("price", "USD per hour", sort="hourly_cost_usd", css="num lo"), Column("is_active", "Active", css="md")],
    show={"memory": lambda v: f"{v.memory_mb / 1024:g} GiB", "disk": lambda v: f"{v.disk_gb} GiB", "price": lambda v: f"{v.hourly_cost_usd:.4f}",
          "gpu": lambda v: f"{v.gpu_count} × {v.gpu_type}" if v.gpu_count else ""},
    default_order="vcpus", usable=lambda v: v.is_active and not v.gpu_count,
    describe=lambda v: (f"{v.vcpus} vCPU, {v.memory_mb / 1024:g} GiB", f"{v.disk_gb} GiB disk", f"$ {v.hourly_cost_usd:.4f} / h"),
)  # fmt: skip

# (id, vCPU, memory MiB, disk GiB, USD per hour, GPUs, GPU type)
DEFAULT_FLAVORS = (
    ("t3-micro", 1, 1024, 8, 0.0104, 0, ""),
    ("t3-small", 2, 2048, 20, 0.0208, 0, ""),
    ("t3-medium", 2, 4096, 30, 0.0416, 0, ""),
    ("t3-large", 2, 8192, 40, 0.0832, 0, ""),
    ("t3-xlarge", 4, 16384, 80, 0.1664, 0, ""),
    ("m1-large", 4, 8192, 80, 0.12, 0, ""),
    ("m5-large", 2, 8192, 100, 0.096, 0, ""),
    ("m5-xlarge", 4, 16384, 200, 0.192, 0, ""),
    ("m5-2xlarge", 8, 32768, 500, 0.384, 0, ""),
    ("c5-large", 2, 4096, 100, 0.085, 0, ""),
    ("c5-xlarge", 4, 8192, 200, 0.17, 0, ""),
    ("r5-large", 2, 16384, 100, 0.126, 0, ""),
    ("r5-xlarge", 4, 32768, 200, 0.252, 0, ""),
)


def seed_flavors(session: Session) -> None:
    """The flavors of a fresh installation; those that are there already, changed or not, are left alone."""
    for flavor_id, vcpus, memory_mb, disk_gb, price, gpus, gpu_type in DEFAULT_FLAVORS:
        if session.get(Flavor, flavor_id) is None:
            session.add(
                Flavor(
                    id=flavor_id, name=flavor_id.replace("-", ".", 1), vcpus=vcpus, memory_mb=memory_mb, disk_gb=disk_gb, hourly_cost_usd=price,
                    gpu_count=gpus, gpu_type=gpu_type, is_gpu=gpus > 0,
                )
            )  # fmt: skip
