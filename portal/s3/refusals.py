"""What the portal refuses, in the words of S3."""

from collections.abc import Mapping

from portal.engines.object_ports import BlobAbsent, BlobDamaged
from portal.engines.ports import EngineError, EngineRefused
from portal.kernel import errors as kernel
from portal.s3.errors import S3Error
from portal.s3.exchange import http_date
from portal.security import key_store
from portal.storage import errors as storage

# Looked through in order: what is special comes before what it is a kind of.
CODES: Mapping[type[kernel.PortalError], str] = {
    storage.NoSuchBucket: "NoSuchBucket", storage.NoSuchKey: "NoSuchKey", storage.NoSuchVersion: "NoSuchVersion", storage.NoSuchUpload: "NoSuchUpload",
    storage.BucketLocked: "InvalidBucketState", storage.NoObjectLock: "InvalidRequest",
    storage.AclUnsupported: "AccessControlListNotSupported", storage.AclLeft: "InvalidBucketAclWithObjectOwnership",
    storage.AclBlocked: "InvalidBucketAclWithBlockPublicAccessError",
    storage.IsMarker: "MethodNotAllowed", storage.ObjectDamaged: "InternalError", storage.BucketNotEmpty: "BucketNotEmpty", storage.KeyTooLong: "KeyTooLongError",
    storage.InvalidKey: "InvalidURI", storage.InvalidPart: "InvalidPart", storage.InvalidPartOrder: "InvalidPartOrder",
    storage.PartTooSmall: "EntityTooSmall", storage.CustomerKeyMissing: "InvalidRequest", storage.CustomerKeyNotWanted: "InvalidRequest",
    storage.CustomerKeyWrong: "AccessDenied", storage.NoSuchEncryptionKey: "KMS.NotFoundException", key_store.KeyGone: "KMS.NotFoundException",
    key_store.KeyDisabled: "KMS.DisabledException", key_store.KeyUnusable: "KMS.KMSInvalidStateException", key_store.NotWrappedHere: "InternalError",
    kernel.PreconditionFailed: "PreconditionFailed", kernel.Forbidden: "AccessDenied",
    kernel.ConfirmationRequired: "AccessDenied", kernel.Unauthorized: "AccessDenied", kernel.Conflict: "OperationAborted",
    kernel.TooLarge: "EntityTooLarge", kernel.RateLimited: "SlowDown", kernel.Unavailable: "ServiceUnavailable", kernel.NotFound: "AccessDenied",
    kernel.MethodNotAllowed: "MethodNotAllowed", kernel.InvalidRequest: "InvalidArgument",
}  # fmt: skip


def refusal_of(error: kernel.PortalError) -> S3Error:
    """The code of S3 for a refusal of the portal, with the portal's own words."""
    details = error.details
    if isinstance(error, kernel.QuotaExceeded):
        return S3Error("TooManyBuckets" if details["dimension"] == "buckets" else "QuotaExceeded", error.message)
    if isinstance(error, storage.BucketTaken):
        return S3Error("BucketAlreadyOwnedByYou" if details["is_own"] else "BucketAlreadyExists")
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), "InternalError")
    # What is not found although it is there is not the caller's to see: nothing is said of it.
    is_told = (code != "InternalError" or isinstance(error, storage.ObjectDamaged)) and type(error) is not kernel.NotFound
    # A mark of a deletion can be deleted and nothing else.
    allowed = {"Allow": "DELETE"} if isinstance(error, storage.IsMarker) else {}
    return S3Error(code, error.message if is_told else None, headers={**_marker(details), **allowed})


def _marker(details: Mapping[str, object]) -> dict[str, str]:
    """What tells clients that the newest version is the mark of a deletion."""
    if "modified_at" not in details:
        return {}
    return {"x-amz-delete-marker": "true", "x-amz-version-id": str(details["version_id"]), "Last-Modified": http_date(details["modified_at"])}  # type: ignore[arg-type]


def failure_of(error: EngineError) -> S3Error:
    """The same for a failure of what keeps the bytes."""
    if isinstance(error, BlobDamaged | BlobAbsent):
        return S3Error("InternalError", f"{error.message} It is not given out.")
    return S3Error("InsufficientStorage" if isinstance(error, EngineRefused) else "ServiceUnavailable", error.message)
