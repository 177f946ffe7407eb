"""Object lock as S3 clients set and read it."""

from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.s3.heads import version_header
from portal.s3.lock_heads import OFF, ON, may_bypass, moment_of
from portal.storage.access import LIST, authorize_object
from portal.storage.facts import BucketFacts, Version, bucket_named
from portal.storage.locks import LONGEST, MODES, bucket_set_object_lock, refuse_without_lock
from portal.storage.objects import object_find
from portal.storage.retention import hold_set, retention_set


def get_configuration(x: Exchange) -> Answer:
    """Whether a bucket has object lock, and how long it keeps what is written."""
    bucket = bucket_named(x.ctx.db, x.bucket)
    authorize_object(x.ctx, bucket, LIST, "")
    if not bucket.object_lock:
        raise S3Error("ObjectLockConfigurationNotFoundError")
    rule = bucket.lock_rule or {}
    length = [xml.leaf(name.capitalize(), rule[name]) for name in LONGEST if name in rule]
    default = [xml.group("Rule", xml.group("DefaultRetention", xml.leaf("Mode", rule["mode"]), *length))] if rule else []
    return document("ObjectLockConfiguration", xml.leaf("ObjectLockEnabled", "Enabled"), *default)


def put_configuration(x: Exchange) -> Answer:
    """Switch object lock on, with a default retention or without."""
    asked = x.protected_document("ObjectLockConfiguration")
    if asked.value("ObjectLockEnabled") != "Enabled":
        raise S3Error("MalformedXML")
    run(x.ctx, bucket_set_object_lock, bucket_named(x.ctx.db, x.bucket).id, {"rule": _rule(asked)})
    return Answer()


def _rule(asked: xml.Node) -> dict[str, str | int]:
    node = asked.child("Rule")
    if node is None:
        return {}
    default = node.child("DefaultRetention")
    given = {name: text for name in LONGEST if default is not None and (text := default.value(name.capitalize())) is not None}
    mode = default.value("Mode") if default is not None else None
    if mode not in MODES or len(given) != 1:
        raise S3Error("MalformedXML")
    ((name, text),) = given.items()
    if not text.removeprefix("-").isdigit() or not text.isascii():
        raise S3Error("MalformedXML")
    if not 1 <= int(text[:9]) <= LONGEST[name]:
        raise S3Error("InvalidRetentionPeriod", f"Default retention period must be 1 to {LONGEST[name]} {name}.")
    return {"mode": str(mode), name: int(text)}


def _where(x: Exchange) -> tuple[str, str, str]:
    return x.bucket, x.key, x.parameter("versionId")


def _found(x: Exchange, called: str) -> tuple[BucketFacts, Version]:
    """The version that is asked about, in a bucket with object lock."""
    found = object_find(x.ctx, *_where(x), called=called)
    refuse_without_lock(found.bucket)
    return found.bucket, found.version


def get_retention(x: Exchange) -> Answer:
    """Until when a version is kept."""
    bucket, version = _found(x, "GetObjectRetention")
    if not version.lock_mode or version.retain_until is None:
        raise S3Error("NoSuchObjectLockConfiguration")
    said = [xml.leaf("Mode", version.lock_mode), xml.leaf("RetainUntilDate", xml.timestamp(version.retain_until))]
    return document("Retention", *said, headers=version_header(bucket, version))


def put_retention(x: Exchange) -> Answer:
    """Say until when a version is kept; an empty element says that it is not."""
    asked = x.protected_document("Retention")
    mode, text = asked.value("Mode") or "", asked.value("RetainUntilDate") or ""
    until = moment_of(text)
    if bool(mode) is not bool(text) or (mode and (mode not in MODES or until is None)):
        raise S3Error("MalformedXML")
    bucket, version = retention_set(x.ctx, _where(x), mode, until, bypass=may_bypass(x.request))
    return Answer(headers=version_header(bucket, version))


def get_hold(x: Exchange) -> Answer:
    """Whether a version is under a legal hold."""
    bucket, version = _found(x, "GetObjectLegalHold")
    if version.legal_hold is None:
        raise S3Error("NoSuchObjectLockConfiguration")
    return document("LegalHold", xml.leaf("Status", ON if version.legal_hold else OFF), headers=version_header(bucket, version))


def put_hold(x: Exchange) -> Answer:
    """Put a version under a legal hold, or lift it."""
    status = x.protected_document("LegalHold").value("Status")
    if status not in {ON, OFF}:
        raise S3Error("MalformedXML")
    bucket, version = hold_set(x.ctx, _where(x), hold=status == ON)
    return Answer(headers=version_header(bucket, version))
