"""Which action a request asks for: by method, by what it is aimed at, and by the sub-resource in the address."""

from collections.abc import Callable, Mapping

from portal.s3 import acls, buckets, copying, cors, encryption, lifecycle, listing, multipart, objects, policies, posting, tagging
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange
from portal.s3.requests import S3Request

Action = Callable[[Exchange], Answer]
# Parameters that make an address that of something else than the bucket or object, in the order in which they count.
SUBRESOURCES = (
    "uploadId", "uploads", "delete", "versions", "location", "versioning", "tagging", "acl", "policy", "policyStatus", "cors", "lifecycle", "encryption", "logging",
    "notification", "object-lock", "ownershipControls", "publicAccessBlock", "replication", "requestPayment", "website", "accelerate", "inventory", "metrics",
    "analytics", "intelligent-tiering", "legal-hold", "retention", "restore", "select", "torrent", "attributes", "session",
)  # fmt: skip
BUCKET: Mapping[tuple[str, str], Action] = {
    ("PUT", ""): buckets.create, ("HEAD", ""): buckets.head, ("DELETE", ""): buckets.delete, ("GET", "location"): buckets.location,
    ("GET", ""): listing.objects, ("GET", "versions"): listing.versions, ("POST", "delete"): objects.delete_many,
    ("GET", "uploads"): multipart.list_uploads, ("GET", "versioning"): buckets.versioning, ("PUT", "versioning"): buckets.set_versioning,
    ("GET", "lifecycle"): lifecycle.get, ("PUT", "lifecycle"): lifecycle.put, ("DELETE", "lifecycle"): lifecycle.delete,
    ("GET", "policy"): policies.get, ("PUT", "policy"): policies.put, ("DELETE", "policy"): policies.delete, ("GET", "policyStatus"): policies.status,
    ("GET", "cors"): cors.get, ("PUT", "cors"): cors.put, ("DELETE", "cors"): cors.delete, ("GET", "acl"): acls.get_bucket, ("PUT", "acl"): acls.put_bucket,
    ("GET", "encryption"): encryption.get_bucket, ("PUT", "encryption"): encryption.put_bucket, ("DELETE", "encryption"): encryption.delete_bucket,
    ("GET", "tagging"): tagging.get_bucket, ("PUT", "tagging"): tagging.put_bucket, ("DELETE", "tagging"): tagging.delete_bucket, ("POST", ""): posting.post,
}  # fmt: skip
OBJECT: Mapping[tuple[str, str], Action] = {
    ("GET", ""): objects.get, ("HEAD", ""): objects.get, ("PUT", ""): objects.put, ("DELETE", ""): objects.delete,
    ("POST", "uploads"): multipart.create, ("PUT", "uploadId"): multipart.part, ("POST", "uploadId"): multipart.complete, ("DELETE", "uploadId"): multipart.abort,
    ("GET", "uploadId"): multipart.list_parts, ("GET", "tagging"): tagging.get, ("PUT", "tagging"): tagging.put, ("DELETE", "tagging"): tagging.delete,
    ("GET", "acl"): acls.get, ("PUT", "acl"): acls.put,
}  # fmt: skip


def action_for(request: S3Request) -> Action:
    """The action. Raises MethodNotAllowed, or NotImplemented for a sub-resource that the portal does not have."""
    if not request.bucket:
        if request.method != "GET":
            raise S3Error("MethodNotAllowed", Method=request.method, ResourceType="SERVICE")
        return buckets.list_all
    if request.method == "OPTIONS":
        return cors.preflight
    table = OBJECT if request.key else BUCKET
    kind = next((name for name in SUBRESOURCES if name in request.parameters), "")
    if request.key and request.method == "PUT" and not kind and request.header("x-amz-copy-source"):
        return copying.copy
    action = table.get((request.method, kind))
    if action is not None:
        return action
    if kind and not any(of == kind for _, of in table):
        raise S3Error("NotImplemented", f"This S3 service has no {kind}.")
    raise S3Error("MethodNotAllowed", Method=request.method, ResourceType=kind.upper() or ("OBJECT" if request.key else "BUCKET"))
