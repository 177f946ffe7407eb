"""What is to be at an external engine for objects: an account for each project that has buckets, one for each holder of keys, and the buckets."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.engines.object_engine_ports import TAKEN, Accounts, BucketWanted, Key, ObjectEngine
from portal.engines.ports import EngineRefused
from portal.identity.models import S3AccessKey
from portal.identity.s3_keys import s3_key_holder
from portal.kernel import quota
from portal.kernel.context import SYSTEM, Context, Principal
from portal.kernel.db import now, transaction
from portal.kernel.errors import StateConflict
from portal.kernel.resource import Registry
from portal.settings import Settings
from portal.storage.engine_policies import document
from portal.storage.errors import NoSuchBucket
from portal.storage.facts import BucketFacts, bucket_by_id
from portal.storage.object_models import BEGUN, MADE, Bucket, EngineBucket
from portal.storage.usage import DIMENSION, GIB

# In front of what the engine refused to do.
REFUSED = "!"
OWNER, HOLDER = "project-", "user-"


def owner_key(settings: Settings, project_id: str) -> Key:
    """The key that the portal uses for the buckets of a project: made of SECRET_KEY, so that it is kept nowhere."""
    made = [hmac.digest(settings.secret().encode(), f"object engine: {what} of {project_id}".encode(), "sha256") for what in ("key", "secret")]
    return Key("AO" + base64.b32encode(made[0]).decode()[:18], base64.urlsafe_b64encode(made[1]).decode()[:40])


@dataclass(frozen=True, slots=True)
class Holders:
    """Who comes to the engine with a key of their own: their keys and what they hold, by the id of the user."""

    keys: Mapping[str, Sequence[Key]]
    principals: Mapping[str, Principal]
    names: Mapping[str, str]


def holders(session: Session, settings: Settings, user_id: str | None = None) -> Holders:
    """All of them, or one user: those whose keys count at this moment."""
    keys: dict[str, list[Key]] = {}
    principals, names = {}, {}
    query = select(S3AccessKey.id).where(S3AccessKey.is_active).order_by(S3AccessKey.id)
    for key_id in session.scalars(query.where(S3AccessKey.user_id == user_id) if user_id else query).all():
        found = s3_key_holder(session, settings, key_id)
        if found is not None and found.principal.user_id is not None:
            keys.setdefault(found.principal.user_id, []).append(Key(found.key_id, found.secret))
            principals[found.principal.user_id], names[found.principal.user_id] = found.principal, found.principal.username
    return Holders(keys, principals, names)


def wanted_bucket(ctx: Context, accounts: Accounts | None, row: Bucket, found: Holders) -> BucketWanted:
    """What a bucket is to be like at the engine."""
    facts = bucket_by_id(ctx.db, row.id)
    if facts is None:
        raise NoSuchBucket("The bucket is gone.")
    policy = None
    if accounts is not None:
        names = {user_id: accounts.arn(HOLDER + user_id) for user_id in found.principals}
        people = {names[user_id]: principal for user_id, principal in found.principals.items()}
        policy = document(ctx, facts, accounts.arn(OWNER + row.project_id), people, names)
    return BucketWanted(
        row.name, row.id, row.versioning, [_cors(rule) for rule in row.cors_rules], [_rule(each) for each in row.lifecycle_rules], policy
    )


def _cors(rule: Mapping[str, Any]) -> dict[str, Any]:
    given = {
        "ID": rule["id"], "AllowedMethods": rule["methods"], "AllowedOrigins": rule["origins"], "AllowedHeaders": rule["headers"],
        "ExposeHeaders": rule["expose_headers"], "MaxAgeSeconds": rule["max_age_seconds"],
    }  # fmt: skip
    return {name: value for name, value in given.items() if value not in ("", [], None)}


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    tags = [{"Key": key, "Value": value} for key, value in sorted(rule.get("tags", {}).items())]
    parts = {**({"Prefix": rule["prefix"]} if rule.get("prefix") else {}), **({"Tags": tags} if tags else {})}
    shape = {"And": parts} if len(tags) + bool(rule.get("prefix")) > 1 else {"Tag": tags[0]} if tags else {"Prefix": rule.get("prefix", "")}
    made: dict[str, Any] = {"ID": rule["id"], "Status": "Enabled" if rule.get("enabled", True) else "Disabled", "Filter": shape}
    if rule.get("expire_days"):
        made["Expiration"] = {"Days": rule["expire_days"]}
    elif rule.get("expire_at"):
        made["Expiration"] = {"Date": datetime.fromisoformat(rule["expire_at"])}
    elif rule.get("expire_markers"):
        made["Expiration"] = {"ExpiredObjectDeleteMarker": True}
    if rule.get("noncurrent_days"):
        made["NoncurrentVersionExpiration"] = {"NoncurrentDays": rule["noncurrent_days"]}
    if rule.get("abort_days"):
        made["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": rule["abort_days"]}
    return made


def digest(wanted: BucketWanted) -> str:
    """What is wanted, in short: as long as it is the same the engine need not be told."""
    return hashlib.sha256(json.dumps(asdict(wanted), sort_keys=True, default=str).encode()).hexdigest()


def fit_bucket(sessions: Callable[[], Session], settings: Settings, registry: Registry, engine: ObjectEngine, bucket_id: str) -> None:
    """Make a bucket at the engine what it is to be, its account first, and note what it was told."""
    with sessions() as session:
        ctx = Context(session, settings, registry, SYSTEM)
        row = session.get_one(Bucket, bucket_id)
        found = holders(session, settings)
        wanted, project_id = wanted_bucket(ctx, engine.accounts, row, found), row.project_id
        limit = quota.usage(session, project_id).get(DIMENSION, (None, 0))[0]
    key = ensure_owner(engine, settings, project_id)
    if engine.accounts is not None:
        engine.accounts.limit(OWNER + project_id, limit * GIB if limit is not None else None)
        # Policies name only users that there are.
        for user_id, keys in found.keys.items():
            engine.accounts.ensure(HOLDER + user_id, found.names[user_id], lambda keys=keys: keys)  # type: ignore[misc]
    buckets = engine.buckets(key)
    try:
        if not buckets.is_there(wanted.name):
            # From now on one that is there without a mark is what a crash has left.
            _note(sessions, bucket_id, made=BEGUN)
        # Whose it is does not depend on what the engine takes of its settings.
        buckets.ensure_bucket(wanted, is_begun=_made(sessions, bucket_id) == BEGUN, claimed=lambda: _note(sessions, bucket_id, made=MADE))
    except EngineRefused as error:
        # It will refuse the same again: told is told, until something changes.
        _note(sessions, bucket_id, REFUSED + digest(wanted)[1:], **({"made": ""} if getattr(error, "code", "") == TAKEN else {}))
        raise
    _note(sessions, bucket_id, digest(wanted))


def _made(sessions: Callable[[], Session], bucket_id: str) -> str:
    with sessions() as session:
        row = session.get(EngineBucket, bucket_id)
        return row.made if row is not None else ""


def _note(sessions: Callable[[], Session], bucket_id: str, told: str | None = None, *, made: str | None = None) -> None:
    with sessions() as session, transaction(session):
        row = session.get(EngineBucket, bucket_id, with_for_update=True) or EngineBucket(bucket_id=bucket_id, told="", made="")
        row.told, row.made, row.told_at = row.told if told is None else told, row.made if made is None else made, now()
        session.add(row)


def refuse_unmade(session: Session, bucket: BucketFacts) -> None:
    """Raise StateConflict for a bucket that is not, or not known to be, one that the portal made at the engine: what is in it is somebody else's."""
    found = session.execute(select(Bucket.state, EngineBucket.made).outerjoin(EngineBucket).where(Bucket.id == bucket.id)).first()
    if found is None or tuple(found) != ("active", MADE):
        raise StateConflict(f"{bucket.name} cannot be used: the engine for objects has no bucket that the portal made for it, or not any more.")


def ensure_owner(engine: ObjectEngine, settings: Settings, project_id: str) -> Key | None:
    """The account that owns the buckets of a project; its key, or None where the portal's own is used."""
    if engine.accounts is None:
        return None
    key = owner_key(settings, project_id)
    engine.accounts.ensure(OWNER + project_id, f"Project {project_id}", lambda: [key], makes_buckets=True)
    return key


def forget_bucket(sessions: Callable[[], Session], settings: Settings, engine: ObjectEngine, bucket_id: str, *, force: bool) -> None:
    """Remove a bucket at the engine."""
    with sessions() as session:
        row = session.get_one(Bucket, bucket_id)
        name, project_id = row.name, row.project_id
    engine.buckets(ensure_owner(engine, settings, project_id)).remove_bucket(name, bucket_id, force=force)
    with sessions() as session, transaction(session):
        if (told := session.get(EngineBucket, bucket_id)) is not None:
            session.delete(told)


def key_of(engine: ObjectEngine, settings: Settings, bucket: BucketFacts) -> Key | None:
    """With which key the portal does what it was asked to in a bucket."""
    return owner_key(settings, bucket.project_id) if engine.accounts is not None else None
