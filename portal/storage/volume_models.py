"""Tables of block storage: types of volumes, volumes, snapshots."""

from datetime import datetime
from typing import Any

from sqlalchemy import LargeBinary
from sqlalchemy.orm import Mapped, mapped_column, relationship

from portal.kernel import fields as f
from portal.kernel.db import Base, JsonColumn
from portal.kernel.quota import Dimension, declare
from portal.kernel.resource import PlatformOwned, ProjectOwned, ShareableByName, Stateful

MOST_GIB = 65_536
MOST_IOPS = 1_000_000
MOST_MIB_S = 100_000

VOLUMES = declare(Dimension("volumes", "Volumes", "", 200))
VOLUME_GB = declare(Dimension("volume_gb", "Volumes", "GiB", 10_000))
SNAPSHOTS = declare(Dimension("snapshots", "Snapshots", "", 500))
SNAPSHOT_GB = declare(Dimension("snapshot_gb", "Snapshots", "GiB", 50_000))


class VolumeType(PlatformOwned, Base):
    """A pool of disks on the host, and how fast a volume in it may be."""

    __tablename__ = "volume_types"

    pool: Mapped[str] = f.field(f.Line(32), label="Pool")
    default_iops: Mapped[int] = f.field(f.Int(100, MOST_IOPS), label="IOPS", editable=True, help="Of a volume that asks for nothing else.")
    max_iops: Mapped[int] = f.field(f.Int(100, MOST_IOPS), label="Most IOPS", editable=True)
    default_throughput_mbps: Mapped[int] = f.field(f.Int(1, MOST_MIB_S), label="Throughput", unit="MiB/s", editable=True)
    max_throughput_mbps: Mapped[int] = f.field(f.Int(1, MOST_MIB_S), label="Most throughput", unit="MiB/s", editable=True)
    max_size_gb: Mapped[int] = f.field(f.Int(1, MOST_GIB), label="Largest volume", unit="GiB", editable=True)
    hourly_cost_usd: Mapped[float] = f.field(f.Number(0, 1000), label="Price per GiB", unit="USD/h", default=0.0, editable=True)
    is_active: Mapped[bool] = f.field(f.Bool(), label="Active", default=True, editable=True, filterable=True)


class Encrypted:
    """What may be encrypted on the disk of the host. Snapshots, copies and what is restored have the data key of their source. Mixin."""

    encryption_enabled: Mapped[bool] = f.field(
        f.Bool(), label="Encrypted", default=False, filterable=True, help="What is written is encrypted on the disk of the host (LUKS)."
    )
    # No reference: the record of a key outlives everything.
    kms_key_id: Mapped[str | None] = f.field(f.Ref("security.key"), label="Encryption key", nullable=True, filterable=True, index=True)
    wrapped_key: Mapped[bytes | None] = mapped_column(LargeBinary, nullable=True)
    # Which version of the key wrapped that.
    key_version: Mapped[int | None] = mapped_column(nullable=True)


class Volume(Encrypted, ProjectOwned, Stateful, Base):
    """A disk that exists by itself; one instance at a time can have it."""

    __tablename__ = "volumes"

    size_gb: Mapped[int] = f.field(f.Int(1, MOST_GIB), label="Size", unit="GiB", sortable=True)
    resize_to_gb: Mapped[int | None] = f.field(f.Int(1, MOST_GIB), label="Growing to", unit="GiB", nullable=True, exposed=False)
    volume_type_id: Mapped[str] = f.field(f.Ref("storage.volume_type"), label="Type", references="volume_types.id", filterable=True)
    iops: Mapped[int] = f.field(f.Int(100, MOST_IOPS), label="IOPS", editable=True, help="The most operations per second; the type's if left empty.")
    throughput_mbps: Mapped[int] = f.field(
        f.Int(1, MOST_MIB_S), label="Throughput", unit="MiB/s", editable=True, help="The most that is moved per second; the type's if left empty."
    )
    # No reference: the record of an instance is forgotten earlier.
    instance_id: Mapped[str | None] = f.field(f.Ref("compute.instance"), label="Instance", nullable=True, filterable=True, index=True)
    attached_at: Mapped[datetime | None] = f.field(f.Moment(), label="Attached", nullable=True)
    is_root: Mapped[bool] = f.field(f.Bool(), label="Root disk", default=False, help="Its instance boots from it.", filterable=True)
    delete_on_termination: Mapped[bool] = f.field(
        f.Bool(), label="Goes with its instance", default=False, editable=True, help="Delete it for good when the instance that has it is terminated."
    )
    snapshot_id: Mapped[str | None] = f.field(f.Ref("storage.snapshot"), label="Made from snapshot", nullable=True)
    source_volume_id: Mapped[str | None] = f.field(f.Ref("storage.volume"), label="Copy of", nullable=True)
    image_id: Mapped[str | None] = f.field(f.Ref("compute.image"), label="Image", references="images.id", nullable=True)
    restoring_id: Mapped[str | None] = f.field(f.Ref("storage.snapshot"), label="Restoring", nullable=True, exposed=False)
    trash_until: Mapped[datetime | None] = f.field(f.Moment(), label="Deleted for good", nullable=True)
    # How a `Schedule` is kept: frequency, time, weekday, retention_days, retention_count, is_enabled.
    snapshot_schedule: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn, nullable=True)
    next_snapshot_at: Mapped[datetime | None] = f.field(f.Moment(), label="Next snapshot", nullable=True, index=True)
    snapshot_problem: Mapped[str] = f.field(f.LongText(2000), label="Snapshot that failed", default="")

    volume_type: Mapped[VolumeType] = relationship()


class Snapshot(Encrypted, ShareableByName, Stateful, Base):
    """What a volume held at a moment."""

    __tablename__ = "snapshots"

    # No reference: a snapshot outlives its volume, and the record of that is forgotten earlier.
    volume_id: Mapped[str] = f.field(f.Line(64), label="Volume", filterable=True, index=True)
    volume_name: Mapped[str] = f.field(f.Name(), label="Of volume")
    size_gb: Mapped[int] = f.field(f.Int(1, MOST_GIB), label="Size", unit="GiB", sortable=True)
    volume_type_id: Mapped[str] = f.field(f.Ref("storage.volume_type"), label="Type", references="volume_types.id")
    copy_of_id: Mapped[str | None] = f.field(f.Ref("storage.snapshot"), label="Copy of", nullable=True)
    image_id: Mapped[str | None] = f.field(f.Ref("compute.image"), label="Image", references="images.id", nullable=True)
    retention_days: Mapped[int | None] = f.field(
        f.Int(1, 3650), label="Kept for", unit="days", nullable=True, editable=True, help="It is deleted after so many days; never if left empty."
    )
    expires_at: Mapped[datetime | None] = f.field(f.Moment(), label="Deleted", nullable=True, index=True)
    # When the schedule of its volume wanted it; none that somebody took has this.
    scheduled_at: Mapped[datetime | None] = f.field(f.Moment(), label="By schedule, due", nullable=True)

    volume_type: Mapped[VolumeType] = relationship()

    @property
    def is_usable(self) -> bool:
        """Whether volumes can be made from it now."""
        return bool(self.state == "completed")


def size_in_quota(volume: Any) -> int:
    """GiB that the quota counts: while a volume grows, those that it will have."""
    return int(max(volume.size_gb, volume.resize_to_gb or 0))
