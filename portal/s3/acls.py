"""Access control lists. The portal keeps canned ones: who owns something, and what everybody or everybody signed in may do with it."""

from collections.abc import Mapping

from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document, people, person
from portal.s3.heads import version_header
from portal.storage.access import LIST, PUBLISH, authorize_object
from portal.storage.buckets import bucket_set_acl
from portal.storage.facts import bucket_named
from portal.storage.object_models import ACLS
from portal.storage.objects import object_find, object_say

GROUPS = "http://acs.amazonaws.com/groups/global/"
ALL, SIGNED_IN = f"{GROUPS}AllUsers", f"{GROUPS}AuthenticatedUsers"
# Canned → what is granted besides the owner's own.
GRANTS: Mapping[str, frozenset[tuple[str, str]]] = {
    "private": frozenset(), "public-read": frozenset({(ALL, "READ")}), "public-read-write": frozenset({(ALL, "READ"), (ALL, "WRITE")}),
    "authenticated-read": frozenset({(SIGNED_IN, "READ")}),
}  # fmt: skip
XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def _document(x: Exchange, owner_id: str | None, acl: str, headers: Mapping[str, str] | None = None) -> Answer:
    names = people(x.ctx, [owner_id])
    owner = person("Owner", owner_id, names)
    mine = owner.replace("<Owner>", f'<Grantee {XSI} xsi:type="CanonicalUser">').replace("</Owner>", "</Grantee>")
    grants = [xml.group("Grant", mine, xml.leaf("Permission", "FULL_CONTROL"))]
    for uri, permission in sorted(GRANTS[acl]):
        grantee = f'<Grantee {XSI} xsi:type="Group">{xml.leaf("URI", uri)}</Grantee>'
        grants.append(xml.group("Grant", grantee, xml.leaf("Permission", permission)))
    return document("AccessControlPolicy", owner, xml.group("AccessControlList", *grants), headers=headers)


def _asked(x: Exchange) -> str:
    """The canned list that a request comes to. Raises NotImplemented for one that is none."""
    canned = x.request.header("x-amz-acl")
    body = x.document_bytes()
    if canned:
        if canned not in ACLS:
            raise S3Error("InvalidArgument", ArgumentName="x-amz-acl", ArgumentValue=canned[:64])
        return canned
    if any(x.request.header(f"x-amz-grant-{name}") for name in ("read", "write", "read-acp", "write-acp", "full-control")):
        raise S3Error("NotImplemented", "Grants to single accounts are not kept here: use a policy.")
    found = xml.parse(body, "AccessControlPolicy").child("AccessControlList")
    if found is None:
        raise S3Error("MalformedACLError")
    granted = set()
    for grant in found.children_named("Grant"):
        grantee, permission = grant.child("Grantee"), grant.value("Permission") or ""
        uri = grantee.value("URI") if grantee is not None else None
        if uri:
            granted.add((uri, permission))
        elif permission != "FULL_CONTROL":
            raise S3Error("NotImplemented", "Grants to single accounts are not kept here: use a policy.")
    acl = next((name for name, grants in GRANTS.items() if grants == granted), None)
    if acl is None:
        raise S3Error("NotImplemented", "Only what canned lists grant is kept here; for anything else use a policy.")
    return acl


def get_bucket(x: Exchange) -> Answer:
    """What others may do with a bucket."""
    bucket = bucket_named(x.ctx.db, x.bucket)
    authorize_object(x.ctx, bucket, LIST, "")
    return _document(x, bucket.owner_id, bucket.acl)


def put_bucket(x: Exchange) -> Answer:
    """Say what others may do with a bucket."""
    run(x.ctx, bucket_set_acl, bucket_named(x.ctx.db, x.bucket).id, {"acl": _asked(x)})
    return Answer()


def get(x: Exchange) -> Answer:
    """What others may do with an object."""
    found = object_find(x.ctx, x.bucket, x.key, x.parameter("versionId"))
    return _document(x, found.version.owner_id, found.version.acl, version_header(found.bucket, found.version))


def put(x: Exchange) -> Answer:
    """Say what others may do with an object."""
    acl = _asked(x)
    bucket, version = object_say(x.ctx, x.bucket, x.key, x.parameter("versionId"), PUBLISH, acl=acl)
    return Answer(headers=version_header(bucket, version))
