"""Which action a request asks for: by method, by what it is aimed at, and by the sub-resource in the address."""

from collections.abc import Callable, Mapping

from sqlalchemy import select

from portal.s3 import (
    access_logs,
    acls,
    attributes,
    buckets,
    copying,
    cors,
    encryption,
    lifecycle,
    listing,
    locks,
    multipart,
    notifications,
    objects,
    policies,
    posting,
    public_access,
    replication,
    tagging,
    websites,
)
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange
from portal.s3.requests import S3Request

Action = Callable[[Exchange], Answer]
# Parameters that make an address that of something else than the bucket or object, in the order in which they count.
SUBRESOURCES = (
    "uploadId", "uploads", "delete", "versions", "location", "versioning", "tagging", "acl", "policy", "policyStatus", "cors", "lifecycle", "encryption", "logging",
    "notification", "object-lock", "ownershipControls", "publicAccessBlock", "replication", "requestPayment", "website", "accelerate", "inventory", "metrics",
    "analytics", "intelligent-tiering", "legal-hold", "retention", "restore", "select", "torrent", "attributes", "session", "abac", "annotation",
    "metadataConfiguration", "metadataTable", "metadataAnnotationTable", "metadataInventoryTable", "metadataJournalTable", "renameObject",
)  # fmt: skip
BUCKET: Mapping[tuple[str, str], Action] = {
    ("PUT", ""): buckets.create, ("HEAD", ""): buckets.head, ("DELETE", ""): buckets.delete, ("GET", "location"): buckets.location,
    ("GET", ""): listing.objects, ("GET", "versions"): listing.versions, ("POST", "delete"): objects.delete_many,
    ("GET", "uploads"): multipart.list_uploads, ("GET", "versioning"): buckets.versioning, ("PUT", "versioning"): buckets.set_versioning,
    ("GET", "lifecycle"): lifecycle.get, ("PUT", "lifecycle"): lifecycle.put, ("DELETE", "lifecycle"): lifecycle.delete,
    ("GET", "policy"): policies.get, ("PUT", "policy"): policies.put, ("DELETE", "policy"): policies.delete, ("GET", "policyStatus"): policies.status,
    ("GET", "website"): websites.get, ("PUT", "website"): websites.put, ("DELETE", "website"): websites.delete,
    ("GET", "logging"): access_logs.get, ("PUT", "logging"): access_logs.put,
    ("GET", "notification"): notifications.get, ("PUT", "notification"): notifications.put,
    ("GET", "replication"): replication.get, ("PUT", "replication"): replication.put, ("DELETE", "replication"): replication.delete,
    ("GET", "cors"): cors.get, ("PUT", "cors"): cors.put, ("DELETE", "cors"): cors.delete, ("GET", "acl"): acls.get_bucket, ("PUT", "acl"): acls.put_bucket,
    ("GET", "encryption"): encryption.get_bucket, ("PUT", "encryption"): encryption.put_bucket, ("DELETE", "encryption"): encryption.delete_bucket,
    ("GET", "tagging"): tagging.get_bucket, ("PUT", "tagging"): tagging.put_bucket, ("DELETE", "tagging"): tagging.delete_bucket, ("POST", ""): posting.post,
    ("GET", "publicAccessBlock"): public_access.get_block, ("PUT", "publicAccessBlock"): public_access.put_block,
    ("DELETE", "publicAccessBlock"): public_access.delete_block, ("GET", "ownershipControls"): public_access.get_ownership,
    ("PUT", "ownershipControls"): public_access.put_ownership, ("DELETE", "ownershipControls"): public_access.delete_ownership,
    ("GET", "object-lock"): locks.get_configuration, ("PUT", "object-lock"): locks.put_configuration,
}  # fmt: skip
OBJECT: Mapping[tuple[str, str], Action] = {
    ("GET", ""): objects.get, ("HEAD", ""): objects.get, ("PUT", ""): objects.put, ("DELETE", ""): objects.delete,
    ("POST", "uploads"): multipart.create, ("PUT", "uploadId"): multipart.part, ("POST", "uploadId"): multipart.complete, ("DELETE", "uploadId"): multipart.abort,
    ("GET", "uploadId"): multipart.list_parts, ("GET", "tagging"): tagging.get, ("PUT", "tagging"): tagging.put, ("DELETE", "tagging"): tagging.delete,
    ("GET", "acl"): acls.get, ("PUT", "acl"): acls.put, ("GET", "attributes"): attributes.get,
    ("GET", "retention"): locks.get_retention, ("PUT", "retention"): locks.put_retention, ("GET", "legal-hold"): locks.get_hold, ("PUT", "legal-hold"): locks.put_hold,
}  # fmt: skip


MAY_BE_EMPTY = {"versionId", "partNumber", "x-id"}
# Where whoever watches the gateway asks how it is: no bucket can have this name.
READY_PATH = "/-/ready"


def ready(x: Exchange) -> Answer:
    """Whether the database answers."""
    x.ctx.db.execute(select(1))
    return Answer(headers={"Content-Type": "text/plain", "Cache-Control": "no-store"}, body=b"ready\n")


def action_for(request: S3Request) -> Action:
    """The action. Raises MethodNotAllowed, or NotImplemented for a sub-resource that the portal does not have."""
    if not request.bucket:
        if request.method != "GET":
            raise S3Error("MethodNotAllowed", Method=request.method, ResourceType="SERVICE")
        return buckets.list_all
    if request.method == "OPTIONS":
        return cors.preflight
    if request.method in {"GET", "HEAD"} and not request.is_virtual_host and f"/{request.bucket}/{request.key}" == READY_PATH:
        return ready
    table = OBJECT if request.key else BUCKET
    kind = next((name for name in SUBRESOURCES if name in request.parameters), "")
    if unknown := _unknown(request):
        raise S3Error("NotImplemented", f"This S3 service has no {unknown[:64]}.")
    if request.key and request.method == "PUT" and not kind and request.header("x-amz-copy-source"):
        return copying.copy
    action = table.get((request.method, kind))
    if action is not None:
        return action
    if kind and not any(of == kind for _, of in table):
        raise S3Error("NotImplemented", f"This S3 service has no {kind}.")
    raise S3Error("MethodNotAllowed", Method=request.method, ResourceType=kind.upper() or ("OBJECT" if request.key else "BUCKET"))


def _unknown(request: S3Request) -> str:
    """A parameter without a value names an operation: one that nobody here knows must not be taken for a write of the whole."""
    if request.method not in {"PUT", "POST", "DELETE"}:
        return ""
    return next((name for name, value in request.parameters.items() if not value and name not in SUBRESOURCES and name not in MAY_BE_EMPTY), "")
