"""What dialogs say beforehand of an action that takes something away: which things it concerns, and whether it can be undone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import func, select

from portal.kernel.context import Context
from portal.kernel.leaving import Listed
from portal.kernel.lookup import seen
from portal.security.encryption_keys import uses_of
from portal.security.key_models import EncryptionKey
from portal.storage.volume_metrics import VolumeMetric
from portal.storage.volume_models import Snapshot, Volume

FINAL = "This cannot be undone."


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that follows; `at` is a moment that belongs to it."""

    text: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Consequences:
    """What follows, and whether it can be undone."""

    lines: Sequence[Line] = ()
    undone: str = FINAL


def consequences_of(ctx: Context, action: str, row: Any) -> Consequences:
    """What an action does besides what its own words say, of what the caller may see."""
    return SAID[action](ctx, row) if action in SAID else Consequences()


def _uses(ctx: Context, key: EncryptionKey) -> list[Line]:
    """What is encrypted with a key, by kind."""
    kinds = groupby(uses_of(ctx, key), key=lambda each: each.label)
    found = [Listed(f"{label}{'s' if len(names) > 1 else ''}", len(names), names) for label, each in kinds if (names := [one.name for one in each])]
    return [Line(f"It encrypts {each.sentence}.") for each in found] or [Line("It encrypts nothing that you may see.")]


def _running(ctx: Context, key: EncryptionKey) -> list[Line]:
    """Running instances with a volume that a key encrypts."""
    instance = ctx.registry.model("compute.instance")
    having = select(Volume.instance_id).where(Volume.kms_key_id == key.id, Volume.deleted_at.is_(None), Volume.instance_id.is_not(None))
    names = ctx.db.scalars(
        select(instance.name).where(instance.id.in_(having), instance.state == "running", instance.deleted_at.is_(None), seen(ctx, instance))
        .order_by(instance.name).limit(100)
    ).all()  # fmt: skip
    if not names:
        return []
    found = Listed("instances" if len(names) > 1 else "instance", len(names), names)
    return [Line(f"Running with it: {found.sentence}. What runs goes on; its next start is refused.")]


def _key_disable(ctx: Context, key: EncryptionKey) -> Consequences:
    return Consequences([*_uses(ctx, key), *_running(ctx, key)])


def _key_deletion(ctx: Context, key: EncryptionKey) -> Consequences:
    return Consequences(
        [*_uses(ctx, key), *_running(ctx, key)],
        "The key is of no use from now on. Until the waiting period is over the deletion can be cancelled; then it cannot be undone.",
    )


def _instance_of(ctx: Context, volume: Volume) -> Any:
    model = ctx.registry.model("compute.instance")
    return ctx.db.scalars(select(model).where(model.id == volume.instance_id, seen(ctx, model))).first()


def _detach(ctx: Context, volume: Volume) -> Consequences:
    instance = _instance_of(ctx, volume)
    return Consequences([Line(f"It is taken from instance {instance.name}, which is {instance.state}.")] if instance is not None else [])


def _restore(ctx: Context, volume: Volume) -> Consequences:
    written = ctx.db.scalar(select(func.max(VolumeMetric.at)).where(VolumeMetric.volume_id == volume.id, VolumeMetric.write_ops > 0))
    taken = ctx.db.scalar(
        select(func.max(Snapshot.created_at)).where(Snapshot.volume_id == volume.id, Snapshot.state == "completed", Snapshot.deleted_at.is_(None))
    )
    lines = [Line("What was written since the chosen snapshot is lost. To keep it, take another snapshot first.")]
    lines += [Line("Last measured writing:", written)] if written is not None else []
    return Consequences([*lines, *([Line("Newest snapshot:", taken)] if taken is not None else [])])


def _trash(ctx: Context, _volume: Volume) -> Consequences:
    return Consequences((), f"It can be recovered for {ctx.settings.volume_trash_days} days.")


SAID: Mapping[str, Callable[[Context, Any], Consequences]] = {
    "security.key.disable": _key_disable,
    "security.key.schedule_deletion": _key_deletion,
    "storage.volume.detach": _detach,
    "storage.volume.restore": _restore,
    "storage.volume.trash": _trash,
}
