"""Looks after an external engine for objects: keys that ended end there, new ones begin, buckets are told what IAM says now, what differs is mended."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import select

from portal.engines.object_engine_ports import ObjectEngine, ObjectRefused
from portal.engines.ports import EngineError
from portal.kernel import quota
from portal.kernel.context import SYSTEM, Context
from portal.kernel.db import transaction
from portal.kernel.errors import Conflict, PortalError, Unavailable
from portal.kernel.operations import run
from portal.kernel.runner import TaskRun
from portal.storage.buckets import bucket_refit
from portal.storage.engine_wanted import HOLDER, OWNER, REFUSED, digest, ensure_owner, holders, owner_key, wanted_bucket
from portal.storage.facts import bucket_by_id
from portal.storage.object_models import Bucket, EngineBucket
from portal.storage.usage import DIMENSION, GIB, Change, charge, usage_locked

log = logging.getLogger("portal.storage")


def tend_engine(task: TaskRun) -> None:
    """One round of it."""
    engine = task.engines.objects
    if engine is None:
        return
    follow_keys(task.ctx, engine)
    follow_policies(task.ctx, engine)


def look_at_engine(task: TaskRun) -> None:
    """A slower round: what somebody changed at the engine itself, and how much is there."""
    engine = task.engines.objects
    if engine is None:
        return
    follow_quotas(task.ctx, engine)
    count(task.ctx, engine)
    for bucket_id in different(task.ctx, engine):
        refit(task.ctx, bucket_id, "The engine's bucket is not what its record says.")


def follow_keys(ctx: Context, engine: ObjectEngine) -> None:
    """Have the accounts and keys at the engine that there are to be, and no others."""
    accounts = engine.accounts
    if accounts is None:
        return
    present = accounts.names()
    found = holders(ctx.db, ctx.settings)
    projects = ctx.db.scalars(select(Bucket.project_id).where(Bucket.deleted_at.is_(None)).distinct()).all()
    ctx.db.rollback()
    wanted = {HOLDER + user_id for user_id in found.keys} | {OWNER + project_id for project_id in projects}
    for name in present:
        if name not in wanted:
            user_id = name.removeprefix(HOLDER)
            # Whoever made their first key a moment ago keeps their account.
            if name.startswith(HOLDER) and holders(ctx.db, ctx.settings, user_id).keys:
                continue
            accounts.remove(name)
    for user_id in found.keys:
        follow_user(ctx, engine, user_id)
    for project_id in projects:
        ensure_owner(engine, ctx.settings, project_id)


def follow_user(ctx: Context, engine: ObjectEngine, user_id: str) -> None:
    """Have the keys of one user at the engine that count at this moment."""
    accounts = engine.accounts
    if accounts is None:
        return
    found = holders(ctx.db, ctx.settings, user_id)
    ctx.db.rollback()
    if not found.keys:
        accounts.remove(HOLDER + user_id)
        return

    def keys() -> Sequence[object]:
        again = holders(ctx.db, ctx.settings, user_id).keys.get(user_id, ())
        ctx.db.rollback()
        return again

    accounts.ensure(HOLDER + user_id, found.names[user_id], keys)  # type: ignore[arg-type]


def refuse_keys(engine: ObjectEngine | None) -> None:
    """Raise Conflict where keys cannot be made at the engine."""
    if engine is not None and engine.accounts is None:
        raise Conflict(
            "This installation cannot make access keys: its engine for objects has no interface for users that the portal knows (S3_ENGINE_ADMIN). "
            "Use the API, or addresses that are signed for one object."
        )


def keys_follow(ctx: Context, engine: ObjectEngine, user_id: str) -> None:
    """Bring the keys of a user to the engine at once, after they were changed here. Raises Unavailable if it does not answer; a later round does it."""
    ctx.db.rollback()
    try:
        follow_user(ctx, engine, user_id)
        follow_policies(ctx, engine)
    except EngineError as error:
        raise Unavailable(f"It is done here, and not yet at the engine for objects, which the portal goes on trying. {error.message}") from error


def follow_policies(ctx: Context, engine: ObjectEngine) -> None:
    """Tell the engine of every bucket of which it was told something else."""
    found, accounts = holders(ctx.db, ctx.settings), engine.accounts
    rows = ctx.db.scalars(select(Bucket).where(Bucket.state == "active", Bucket.deleted_at.is_(None)).order_by(Bucket.id)).all()
    told = {row.bucket_id: row.told for row in ctx.db.scalars(select(EngineBucket))}
    wanted = {row.id: digest(wanted_bucket(ctx, accounts, row, found)) for row in rows}
    changed = [bucket_id for bucket_id, each in wanted.items() if told.get(bucket_id, "").removeprefix(REFUSED) not in {each, each[1:]}]
    ctx.db.rollback()
    for bucket_id in changed:
        refit(ctx, bucket_id, "What IAM or its record says of the bucket has changed.")


def different(ctx: Context, engine: ObjectEngine) -> list[str]:
    """The buckets that the engine has otherwise than it was told."""
    found, accounts = holders(ctx.db, ctx.settings), engine.accounts
    rows = ctx.db.scalars(select(Bucket).where(Bucket.state == "active", Bucket.deleted_at.is_(None)).order_by(Bucket.id)).all()
    refused = set(ctx.db.scalars(select(EngineBucket.bucket_id).where(EngineBucket.told.startswith(REFUSED))))
    wanted = [(row.id, row.project_id, wanted_bucket(ctx, accounts, row, found)) for row in rows if row.id not in refused]
    ctx.db.rollback()
    other = []
    for bucket_id, project_id, each in wanted:
        key = owner_key(ctx.settings, project_id) if accounts is not None else None
        try:
            if engine.buckets(key).differs(each):
                other.append(bucket_id)
        except ObjectRefused as error:
            log.warning("bucket %s at the engine: %s", each.name, error.message)
            other.append(bucket_id)
    return other


def refit(ctx: Context, bucket_id: str, reason: str) -> None:
    """Queue the job that tells the engine."""
    try:
        run(replace(ctx, principal=SYSTEM), bucket_refit, bucket_id, {"reason": reason})
    except PortalError as error:
        # Somebody is at work on it; the next round tries again.
        log.info("bucket %s: %s", bucket_id, error.message)
        ctx.db.rollback()


def follow_quotas(ctx: Context, engine: ObjectEngine) -> None:
    """Hold each project's account to the project's quota."""
    if engine.accounts is None:
        return
    projects = ctx.db.scalars(select(Bucket.project_id).where(Bucket.deleted_at.is_(None)).distinct()).all()
    limits = {project_id: quota.usage(ctx.db, project_id).get(DIMENSION, (None, 0))[0] for project_id in projects}
    ctx.db.rollback()
    for project_id, limit in limits.items():
        engine.accounts.limit(OWNER + project_id, limit * GIB if limit is not None else None)


def count(ctx: Context, engine: ObjectEngine) -> None:
    """Keep with each bucket what the engine says that it holds."""
    if engine.accounts is None:
        return
    rows = ctx.db.execute(select(Bucket.id, Bucket.name).where(Bucket.state == "active", Bucket.deleted_at.is_(None))).all()
    ctx.db.rollback()
    for bucket_id, name in rows:
        figures = engine.accounts.figures(name)
        if figures is None:
            continue
        try:
            with transaction(ctx.db):
                usage, facts = usage_locked(ctx.db, bucket_id), bucket_by_id(ctx.db, bucket_id)
                change = Change(figures.size_bytes - usage.size_bytes, figures.objects - usage.objects, figures.objects - usage.versions)
                if facts is not None:
                    charge(ctx, facts, usage, change)
        except PortalError as error:
            log.warning("bucket %s: %s", name, error.message)
            ctx.db.rollback()
