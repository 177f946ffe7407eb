"""Looks after encryption keys without being asked: rotates those whose period is over, deletes those whose waiting period is."""

import logging
from dataclasses import replace

from sqlalchemy import select

from portal.kernel.db import now
from portal.kernel.errors import PortalError
from portal.kernel.operations import run
from portal.kernel.runner import TaskRun
from portal.security.encryption_keys import key_delete, key_rotate
from portal.security.key_models import EncryptionKey
from portal.security.key_store import master_problem

log = logging.getLogger("portal.keys")
AT_ONCE = 200


def tend_keys(task: TaskRun) -> None:
    """One round of it."""
    problem = master_problem(task.ctx.db, task.ctx.settings)
    task.ctx.db.rollback()
    if problem:
        log.error(problem)
    due = select(EncryptionKey.id, EncryptionKey.project_id).where(EncryptionKey.deleted_at.is_(None), EncryptionKey.locked.is_(False))
    rotated = due.where(EncryptionKey.state == "enabled", EncryptionKey.next_rotation_at <= now())
    over = due.where(EncryptionKey.state == "pending-deletion", EncryptionKey.deletion_date <= now())
    for query, op in ((rotated, key_rotate), (over, key_delete)):
        rows = task.ctx.db.execute(query.order_by(EncryptionKey.id).limit(AT_ONCE)).all()
        task.ctx.db.rollback()
        for row in rows:
            try:
                run(replace(task.ctx, project_id=row.project_id), op, row.id)
            except PortalError as error:
                # Somebody is at work on it; the next round tries again. The refusal is in the audit log.
                log.warning("%s %s: %s", op.verb, row.id, error.message)
                task.ctx.db.rollback()
