"""Encryption keys of projects: made, rotated, disabled, deleted after a waiting period. What uses them asks `key_store`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any

from sqlalchemy import delete, exists, or_, select

from portal.kernel import fields as f
from portal.kernel.authz import authorize, decide, reach, target_of
from portal.kernel.context import SYSTEM, Context
from portal.kernel.db import now
from portal.kernel.declare import Effect, Step, operation, update_operation
from portal.kernel.errors import Conflict, InvalidRequest
from portal.kernel.fields import Ref
from portal.kernel.ids import new_id
from portal.kernel.jobs import active_for
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.operations import run
from portal.kernel.resource import Column, ResourceType
from portal.kernel.rows import insert_along
from portal.security.key_models import EncryptionKey, KeyVersion
from portal.security.key_rewrap import rewrap_data_keys
from portal.security.key_store import HOLDERS, default_key, refuse_unusable, version_make

USE, READ, READ_USAGE = "security.key.use", "security.key.read", "security.key.read_usage"
LIFECYCLE = Lifecycle(
    "enabled",
    {
        "enabled": frozenset({"disabled", "pending-deletion", "deleted"}),
        "disabled": frozenset({"enabled", "pending-deletion", "deleted"}),
        "pending-deletion": frozenset({"disabled", "deleted"}),
    },
    ended=frozenset({"deleted"}),
    tones={"disabled": "off", "pending-deletion": "warn"},
)
WindowDays = Annotated[int, f.FieldInfo(f.Int(7, 30), "Waiting period", "It can be cancelled for so long.", "days")]
REWRAP = (Step(rewrap_data_keys, "Wrap data keys again", because="what either version wrapped can be read"),)


@operation(EncryptionKey, "create", label="Create", needs="manage", effect=Effect.CREATE, icon="plus", holds="enabled",
           along=lambda ctx, row, _inputs: version_make(ctx, row, 1, "created"))  # fmt: skip
def key_create(
    ctx: Context, *, name: str, description: str = "", key_type: str = "symmetric", rotation_enabled: bool = True, rotation_period_days: int = 365,
    tags: dict[str, str] | None = None,
) -> EncryptionKey:  # fmt: skip
    """Make a key; what it consists of is random and never leaves the portal."""
    del ctx
    row = EncryptionKey(
        name=name,
        description=description,
        key_type=key_type,
        rotation_enabled=rotation_enabled,
        rotation_period_days=rotation_period_days,
        tags=tags or {},
    )
    _plan(row, now())
    return row


@operation(EncryptionKey, "create_default", label="Make the default key", needs="platform", effect=Effect.CREATE, internal=True, holds="enabled",
           along=lambda ctx, row, _inputs: version_make(ctx, row, 1, "created"))  # fmt: skip
def key_create_default(ctx: Context) -> EncryptionKey:
    """Make the key of a project for what is encrypted without naming one."""
    return _default(ctx)


def _default(ctx: Context) -> EncryptionKey:
    named = select(EncryptionKey.id).where(
        EncryptionKey.project_id == ctx.project_id, EncryptionKey.name == "default", EncryptionKey.deleted_at.is_(None)
    )
    row = EncryptionKey(
        id=new_id("kms"), name="default", description="For what is encrypted without naming a key.", is_default=True, state="enabled", tags={},
        rotation_enabled=True, rotation_period_days=365,
    )  # fmt: skip
    if ctx.db.scalar(named.limit(1)) is not None:
        row.name = f"default-{row.id}"
    _plan(row, now())
    return row


def default_key_ensure(ctx: Context, project_id: str) -> EncryptionKey:
    """The default key of a project, made if it is not there: outside of a transaction. Raises KeyUnusable if somebody has disabled it."""
    if (found := default_key(ctx.db, project_id)) is None:
        system = replace(ctx, principal=SYSTEM, project_id=project_id, idempotency_key="", inputs={})
        try:
            found = run(system, key_create_default).row
        except Conflict:
            # Another request was quicker.
            ctx.db.rollback()
            if (found := default_key(ctx.db, project_id)) is None:
                raise
    refuse_unusable(found)
    return found


def default_key_along(ctx: Context, project_id: str) -> EncryptionKey:
    """The same within the caller's transaction, in which a resource is created that needs it."""
    if (found := default_key(ctx.db, project_id)) is None:
        found = _default(ctx)
        insert_along(ctx, found, project_id)
        version_make(ctx, found, 1, "created")
    refuse_unusable(found)
    return found


def key_authorize(ctx: Context, key: EncryptionKey) -> None:
    """Raise Forbidden for somebody who may not use a key, KeyUnusable for one that must not be used."""
    use_authorize(ctx, key)
    refuse_unusable(key)


def use_authorize(ctx: Context, key: EncryptionKey) -> None:
    """Raise Forbidden for somebody who may not use a key, which is named only to who may see it."""
    target = target_of(key)
    is_seen = decide(ctx, READ, target).allowed
    authorize(ctx, USE, target if is_seen else replace(target, label="an encryption key that you may not see"))


def refuse_needless_key(wanted: bool | None, key: EncryptionKey | None) -> None:
    """Raise InvalidRequest for what is not to be encrypted, but with a key."""
    if key is not None and wanted is False:
        raise InvalidRequest.fields({"encryption_enabled": ["is false, and kms_key_id names a key: leave one of them out."]})


def _plan(row: EncryptionKey, since: datetime) -> None:
    """When the key is rotated next."""
    row.next_rotation_at = since + timedelta(days=row.rotation_period_days) if row.rotation_enabled else None


def _before_update(ctx: Context, key: Any, changes: dict[str, Any]) -> None:
    del ctx
    if {"rotation_enabled", "rotation_period_days"} & set(changes):
        days, enabled = changes.get("rotation_period_days", key.rotation_period_days), changes.get("rotation_enabled", key.rotation_enabled)
        key.next_rotation_at = (key.last_rotated_at or key.created_at) + timedelta(days=days) if enabled else None


@operation(EncryptionKey, "rotate", label="Rotate", needs="manage", icon="redo", steps=REWRAP, when={"enabled"}, settles="enabled", fails="enabled",
           rests=lambda row: str(row.state))  # fmt: skip
def key_rotate(ctx: Context, key: EncryptionKey) -> None:
    """Make a new version, which encrypts from now on; a job wraps again what older ones have wrapped, and they go on to be read."""
    key.current_version += 1
    key.last_rotated_at = now()
    _plan(key, key.last_rotated_at)
    version_make(ctx, key, key.current_version, "automatic" if ctx.principal.is_system else "manual")


@operation(EncryptionKey, "disable", label="Disable", needs="manage", icon="lock", when={"enabled"}, holds="disabled")
def key_disable(ctx: Context, key: EncryptionKey) -> None:
    """Refuse every use of the key until it is enabled: what is encrypted with it cannot be read meanwhile."""
    del ctx, key


@operation(EncryptionKey, "enable", label="Enable", needs="manage", icon="check", when={"disabled"}, holds="enabled")
def key_enable(ctx: Context, key: EncryptionKey) -> None:
    """Let the key be used again."""
    del ctx, key


@operation(EncryptionKey, "schedule_deletion", label="Schedule deletion", needs="manage", icon="trash", danger=True, when={"enabled", "disabled"},
           holds="pending-deletion")  # fmt: skip
def key_schedule_deletion(ctx: Context, key: EncryptionKey, *, window_days: WindowDays = 30) -> None:
    """Delete the key after a waiting period, in which it cannot be used; what is encrypted with it can never be read again after that."""
    del ctx
    key.deletion_date = now() + timedelta(days=window_days)


@operation(EncryptionKey, "cancel_deletion", label="Cancel deletion", needs="manage", icon="redo", when={"pending-deletion"}, holds="disabled")
def key_cancel_deletion(ctx: Context, key: EncryptionKey) -> None:
    """Keep the key; it is disabled until somebody enables it."""
    del ctx
    key.deletion_date = None


@operation(EncryptionKey, "delete", label="Delete for good", needs="manage", effect=Effect.REMOVE, icon="trash", danger=True, in_menu=False,
           holds="deleted")  # fmt: skip
def key_delete(ctx: Context, key: EncryptionKey) -> None:
    """Delete a key whose waiting period is over, or with its project; any other is refused (409): schedule its deletion, which can be cancelled.

    With its project it goes when nothing is encrypted with it any more.
    """
    is_over = key.deletion_date is not None and key.deletion_date <= now()
    is_leaving = active_for(ctx.db, key.project_id) is not None
    if not is_over and not is_leaving:
        raise Conflict(
            f"{key.name} is deleted after a waiting period only, in which that can be cancelled: "
            + (f"it ends at {key.deletion_date.isoformat()}." if key.deletion_date else "ask for it with schedule-deletion, in place of DELETE."),
            details={"deletion_date": str(key.deletion_date or ""), "schedule": f"/api/v1/security/keys/{key.id}/schedule-deletion"},
        )
    if is_leaving and not is_over and (users := uses_of(ctx, key, unseen=True)):
        raise Conflict(f"{users[0].name} is encrypted with {key.name}.")
    ctx.db.execute(delete(KeyVersion).where(KeyVersion.key_id == key.id))


@dataclass(frozen=True, slots=True)
class UsedBy:
    """A resource that is encrypted with a key."""

    type_key: str
    label: str
    id: str
    name: str


def uses_of(ctx: Context, key: EncryptionKey, *, unseen: bool = False, most: int = 100) -> Sequence[UsedBy]:
    """What names the key in its record, or has something in it that does, of what the caller may see, or of everything (`unseen`)."""
    found: list[UsedBy] = []
    for rtype in ctx.registry:
        model: Any = rtype.model
        named = [
            getattr(model, attr) == key.id for attr, info in rtype.fields().items() if isinstance(info.kind, Ref) and info.kind.type_key == KEY.key
        ]
        for holder in HOLDERS:
            if holder.within is not None and holder.within[0] == rtype.key:
                rows = holder.table.c
                named.append(exists().where(rows[holder.within[1]] == model.id, rows[holder.key_id] == key.id))
        if named:
            query = select(model.id, model.name).where(or_(*named), model.deleted_at.is_(None))
            query = query if unseen else query.where(reach(ctx, f"{rtype.key}.read").rows(model))
            among = ctx.db.execute(query.order_by(model.name, model.id).limit(most)).all()
            found += [UsedBy(rtype.key, rtype.label, row.id, row.name) for row in among]
    return found


def versions_of(ctx: Context, key: EncryptionKey) -> Sequence[KeyVersion]:
    """The versions of a key, newest first."""
    return ctx.db.scalars(select(KeyVersion).where(KeyVersion.key_id == key.id).order_by(KeyVersion.number.desc())).all()


key_update = update_operation(EncryptionKey, needs="manage", before=_before_update)
KEY = ResourceType(
    EncryptionKey, service="security", name="key", collection="keys", prefix="kms", label="Encryption key", plural="Encryption keys", icon="key",
    summary="Keys that volumes and objects are encrypted with.",
    operations=[key_create, key_create_default, key_update, key_rotate, key_disable, key_enable,
                key_schedule_deletion, key_cancel_deletion, key_delete],
    columns=[Column("name", "Name", sort="name"), Column("state", "State", sort="state"), Column("current_version", "Version", css="num"),
             Column("operations_count", "Uses", css="num md"), Column("last_rotated_at", "Rotated", css="lo"),
             Column("next_rotation_at", "Next rotation", css="md"), Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE, quota={"encryption_keys": lambda key: 0 if key.is_default else 1},
    aliases={"key_state": "state", "scheduled_deletion_date": "deletion_date", "encryption_operations_count": "operations_count"},
    also_at=("/api/v1/services/encryption-keys", "/api/v1/services/kms/keys"), extra_permissions={"use": "write", "read_usage": "audit"},
    usable=lambda key: key.state == "enabled", describe=lambda key: (f"Version {key.current_version}", key.state),
)  # fmt: skip
