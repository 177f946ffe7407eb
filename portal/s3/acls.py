"""Lists of access as S3 clients set and read them: canned ones, and grants to users and groups, in headers or a document."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from portal.kernel.authz import Target, decide
from portal.kernel.context import Context
from portal.kernel.context import Grant as Role
from portal.kernel.operations import run
from portal.kernel.policy import Condition, Statement
from portal.s3 import xml
from portal.s3.acl_heads import GROUPS, Asked, asked_in_headers, grantee_of
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document, people, person
from portal.s3.heads import version_header
from portal.storage.access import PUBLISH, READ_ACL, authorize_object
from portal.storage.facts import BucketFacts, bucket_named
from portal.storage.grants import ENFORCED, FULL, PERMISSIONS, Grant, grants_of
from portal.storage.object_models import CUSTOM
from portal.storage.objects import object_find, object_set_acl
from portal.storage.public_access import bucket_set_acl

XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def _asked(x: Exchange, *, of_bucket: bool) -> Asked:
    """The list that a request comes to, by its headers or its document."""
    found, body = asked_in_headers(x.request, of_bucket=of_bucket), x.document_bytes()
    if found is not None:
        return found
    if not body:
        raise S3Error("MissingSecurityHeader", "Your request was missing a required header: x-amz-acl", MissingHeaderName="x-amz-acl")
    listed = xml.parse(body, "AccessControlPolicy").child("AccessControlList")
    if listed is None:
        raise S3Error("MalformedACLError")
    return Asked(CUSTOM, tuple(_grant(node) for node in listed.children_named("Grant")))


def _grant(node: xml.Node) -> Grant:
    grantee, permission = node.child("Grantee"), node.value("Permission")
    if grantee is None or permission not in PERMISSIONS:
        raise S3Error("MalformedACLError")
    for name, kind in (("ID", "id"), ("URI", "uri"), ("EmailAddress", "emailaddress")):
        if (value := grantee.value(name)) is not None:
            return grantee_of(kind, value), permission
    raise S3Error("MalformedACLError")


def _document(x: Exchange, owner_id: str | None, grants: Sequence[Grant], headers: Mapping[str, str] | None = None) -> Answer:
    names = people(x.ctx, [owner_id, *(grantee for grantee, _ in grants)])
    listed = (xml.group("Grant", _element(grantee, names), xml.leaf("Permission", permission)) for grantee, permission in grants)
    return document("AccessControlPolicy", person("Owner", owner_id, names), xml.group("AccessControlList", *listed), headers=headers)


def _element(grantee: str, names: Mapping[str, str]) -> str:
    if grantee in GROUPS:
        return f'<Grantee {XSI} xsi:type="Group">{xml.leaf("URI", GROUPS[grantee])}</Grantee>'
    return person("Grantee", grantee, names).replace("<Grantee>", f'<Grantee {XSI} xsi:type="CanonicalUser">', 1)


def _listed(bucket: BucketFacts, owner_id: str | None, acl: str, grants: Sequence[Sequence[str]] | None) -> tuple[str | None, list[Grant]]:
    """(the owner, what is granted) as a client sees it: a word stands for the owner's own besides what it says."""
    if bucket.ownership == ENFORCED:
        return bucket.owner_id, [(bucket.owner_id or "", FULL)]
    given = grants_of(acl, grants)
    return owner_id, given if acl == CUSTOM else [(owner_id or "", FULL), *given]


def get_bucket(x: Exchange) -> Answer:
    """What others may do with a bucket."""
    bucket = bucket_named(x.ctx.db, x.bucket)
    authorize_object(x.ctx, bucket, READ_ACL, "")
    return _document(x, *_listed(bucket, bucket.owner_id, bucket.acl, bucket.grants))


def put_bucket(x: Exchange) -> Answer:
    """Say what others may do with a bucket."""
    asked = _asked(x, of_bucket=True)
    bucket = bucket_named(x.ctx.db, x.bucket)
    given = {"configuration": configuration_of(asked.grants)} if asked.grants is not None else {"acl": asked.acl}
    run(_let_in(x.ctx, bucket), bucket_set_acl, bucket.id, given)
    return Answer()


def configuration_of(grants: Sequence[Grant]) -> dict[str, list[dict[str, str]]]:
    """Grants as the operations of buckets take them."""
    return {"grants": [{"grantee": grantee, "permission": permission} for grantee, permission in grants]}


def _let_in(ctx: Context, bucket: BucketFacts) -> Context:
    """The context in which the caller sets the bucket's list, who may do so by that list alone: whoever signed may have been granted it."""
    operation = "storage.bucket.set_acl"
    target = Target(bucket.project_id, bucket.owner_id, id=bucket.id, name=bucket.name, tags=bucket.tags)
    if ctx.principal.user_id is None or decide(ctx, operation, target).allowed:
        return ctx
    by_list = authorize_object(ctx, bucket, PUBLISH, "")
    this = (Condition("StringEquals", "resource.id", (bucket.id,)),)
    granted = Statement(by_list.statement, allows=True, actions=(operation, "storage.bucket.read"), conditions=this)
    role = Role(by_list.policy, bucket.project_id, label=by_list.policy, statements=(granted,))
    return replace(ctx, principal=replace(ctx.principal, grants=(*ctx.principal.grants, role), access=None), project_id=bucket.project_id)


def get(x: Exchange) -> Answer:
    """What others may do with an object."""
    found = object_find(x.ctx, x.bucket, x.key, x.parameter("versionId"), READ_ACL)
    version = found.version
    return _document(x, *_listed(found.bucket, version.owner_id, version.acl, version.grants), version_header(found.bucket, version))


def put(x: Exchange) -> Answer:
    """Say what others may do with an object."""
    asked = _asked(x, of_bucket=False)
    bucket, version = object_set_acl(x.ctx, (x.bucket, x.key, x.parameter("versionId")), asked.acl, asked.grants)
    return Answer(headers=version_header(bucket, version))
