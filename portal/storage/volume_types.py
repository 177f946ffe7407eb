"""Types of volumes: each is a pool on the host, with how fast its volumes may be."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from portal.kernel.context import Context
from portal.kernel.declare import update_operation
from portal.kernel.errors import InvalidRequest
from portal.kernel.resource import Column, ResourceType
from portal.storage.volume_models import VolumeType


def limits_within(vtype: VolumeType, iops: int | None, throughput_mbps: int | None) -> tuple[int, int]:
    """What a volume of a type gets of what it asks for. Raises InvalidRequest for more than the type gives."""
    given = (
        ("iops", iops, vtype.default_iops, vtype.max_iops),
        ("throughput_mbps", throughput_mbps, vtype.default_throughput_mbps, vtype.max_throughput_mbps),
    )
    problems = {name: [f"is more than {vtype.name} gives: at most {most:,}."] for name, value, _, most in given if value is not None and value > most}
    if problems:
        raise InvalidRequest.fields(problems)
    found = [default if value is None else value for _, value, default, _ in given]
    return found[0], found[1]


def _check(ctx: Context, vtype: VolumeType, changes: Mapping[str, Any]) -> None:
    """The default of a type is one that it gives."""
    del ctx
    now = {name: changes.get(name, getattr(vtype, name)) for name in ("default_iops", "max_iops", "default_throughput_mbps", "max_throughput_mbps")}
    for what in ("iops", "throughput_mbps"):
        if now[f"default_{what}"] > now[f"max_{what}"]:
            raise InvalidRequest.fields({f"default_{what}": [f"is more than the most that a volume gets: {now[f'max_{what}']:,}."]})


VOLUME_TYPE = ResourceType(
    VolumeType, service="storage", name="volume_type", collection="volume-types", prefix="vt", label="Volume type", plural="Volume types",
    icon="sliders", summary="The pools that volumes live in, and how fast their volumes may be.",
    operations=[update_operation(VolumeType, needs="platform", before=_check)],
    columns=[Column("name", "Name", sort="name"), Column("default_iops", "IOPS", css="num"), Column("max_iops", "Most IOPS", css="num md"),
             Column("default_throughput_mbps", "MiB/s", css="num"), Column("max_throughput_mbps", "Most MiB/s", css="num md"),
             Column("max_size_gb", "Largest, GiB", css="num lo"), Column("is_active", "Active", css="md")],
    default_order="name", usable=lambda v: v.is_active,
    describe=lambda v: (f"{v.default_iops:,} IOPS, {v.default_throughput_mbps:,} MiB/s", f"Up to {v.max_iops:,} IOPS, {v.max_throughput_mbps:,} MiB/s"),
)  # fmt: skip

# What a volume is of that asks for no type, and every root volume.
DEFAULT_TYPE = "vt-ssd"
# (pool, default IOPS, most IOPS, default MiB/s, most MiB/s, description)
DEFAULT_TYPES = (
    ("ssd", 3_000, 16_000, 125, 1_000, "For most things."),
    ("hdd", 500, 2_000, 100, 500, "Large and rarely used."),
    ("nvme", 16_000, 64_000, 500, 4_000, "For databases."),
)


def seed_volume_types(session: Session) -> None:
    """The types of a fresh installation; those that are there already, changed or not, are left alone."""
    for pool, iops, most_iops, throughput, most_throughput, description in DEFAULT_TYPES:
        if session.get(VolumeType, f"vt-{pool}") is None:
            session.add(
                VolumeType(
                    id=f"vt-{pool}", name=pool, pool=pool, description=description, default_iops=iops, max_iops=most_iops,
                    default_throughput_mbps=throughput, max_throughput_mbps=most_throughput, max_size_gb=16_384,
                )
            )  # fmt: skip
