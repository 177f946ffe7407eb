"""Bytes that are not what was written: who is told of them, and how often."""

import logging
from datetime import timedelta

from sqlalchemy import select

from portal.identity.models import User
from portal.kernel import audit, events
from portal.kernel.alerts import Alert, Notice, alert
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.storage.access import subject_of
from portal.storage.facts import BucketFacts

log = logging.getLogger("portal.storage")
DAMAGED = "storage.object.damaged"
# Told once in so long of one object, however often somebody asks for it.
AGAIN = timedelta(days=1)


def damage_report(ctx: Context, bucket: BucketFacts, key: str, version_id: str, what: str) -> None:
    """Tell the bucket's owner and all administrators, and write it into the audit log."""
    log.error("%s/%s (%s): %s", bucket.name, key, version_id, what)
    title = f"{bucket.name}/{key} is damaged"[:255]
    with transaction(ctx.db):
        told = select(Alert.id).where(
            Alert.resource_type == DAMAGED, Alert.resource_id == bucket.id, Alert.title == title, Alert.created_at > now() - AGAIN
        )
        if ctx.db.scalar(told.limit(1)) is not None:
            return
        admins = ctx.db.scalars(select(User.id).where(User.platform_role == "platform_admin", User.is_active.is_(True)))
        message = f"{what} Version {version_id} is not given out. Write the object again, or restore it from a backup; then look after the disk."
        for user_id in sorted({*admins, *filter(None, [bucket.owner_id])}):
            alert(ctx, user_id, Notice(title, message, "critical", DAMAGED, bucket.id, f"/storage/buckets/{bucket.id}"))
        events.emit(
            ctx, DAMAGED, resource_id=bucket.id, name=bucket.name, project_id=bucket.project_id, payload={"object": key, "version_id": version_id}
        )
        audit.record(ctx, DAMAGED, subject_of(bucket, key), status="failure", error=what, details={"version_id": version_id})
