"""Every operation of S3, and where the gateway stands with it. `docs/s3-conformance.md` is written from here.

Whoever builds an operation moves its name from REFUSED to SUPPORTED, puts `@conforms("TheOperation")` on the tests that hold it against the
public documentation (anywhere below tests/contract), and runs `UPDATE_GOLDEN=1 pytest tests/contract/s3_conformance/test_conform_table.py`. An operation
that is supported and has no such test fails there; one that is not supported and does something fails in test_conform_refused.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# Group → operation → what to know of it.
SUPPORTED: Mapping[str, Mapping[str, str]] = {
    "Buckets": {
        "ListBuckets": "those of the key's project", "CreateBucket": "the region is ignored", "HeadBucket": "", "DeleteBucket": "", "GetBucketLocation": "",
    },
    "Objects": {
        "PutObject": "conditional writes as well", "GetObject": "ranges, parts, conditions, overridden headers", "HeadObject": "",
        "GetObjectAttributes": "", "DeleteObject": "`If-Match` as well", "DeleteObjects": "", "CopyObject": "",
    },
    "Listings": {"ListObjects": "", "ListObjectsV2": "", "ListObjectVersions": ""},
    "Uploads in parts": {
        "CreateMultipartUpload": "", "UploadPart": "", "UploadPartCopy": "", "CompleteMultipartUpload": "a second time answers like the first",
        "AbortMultipartUpload": "", "ListParts": "", "ListMultipartUploads": "",
    },
    "Versions": {"GetBucketVersioning": "", "PutBucketVersioning": "no MFA delete"},
    "Tags": {
        "GetBucketTagging": "", "PutBucketTagging": "", "DeleteBucketTagging": "", "GetObjectTagging": "", "PutObjectTagging": "", "DeleteObjectTagging": "",
    },
    "Access": {
        "GetBucketAcl": "", "PutBucketAcl": "canned ones and grants, not by e-mail address", "GetObjectAcl": "",
        "PutObjectAcl": "the same", "GetBucketPolicy": "",
        "PutBucketPolicy": "conditions on `s3:prefix` and `aws:SourceIp`", "DeleteBucketPolicy": "", "GetBucketPolicyStatus": "",
    },
    "Public access": {
        "GetPublicAccessBlock": "new buckets have all four flags", "PutPublicAccessBlock": "", "DeletePublicAccessBlock": "",
        "GetBucketOwnershipControls": "new buckets: BucketOwnerEnforced", "PutBucketOwnershipControls": "", "DeleteBucketOwnershipControls": "",
    },
    "Object lock": {
        "GetObjectLockConfiguration": "", "PutObjectLockConfiguration": "", "GetObjectRetention": "", "PutObjectRetention": "within 100 years",
        "GetObjectLegalHold": "", "PutObjectLegalHold": "",
    },
    "Other origins": {"GetBucketCors": "", "PutBucketCors": "", "DeleteBucketCors": ""},
    "Lifecycle": {
        "GetBucketLifecycleConfiguration": "", "PutBucketLifecycleConfiguration": "", "DeleteBucketLifecycle": "",
        "GetBucketLifecycle": "the older name", "PutBucketLifecycle": "the older name",
    },
    "Website": dict.fromkeys(("GetBucketWebsite", "PutBucketWebsite", "DeleteBucketWebsite"), ""),
    "Logging": dict.fromkeys(("GetBucketLogging", "PutBucketLogging"), ""),
    "Notifications": dict.fromkeys(
        ("GetBucketNotificationConfiguration", "PutBucketNotificationConfiguration", "GetBucketNotification", "PutBucketNotification"), ""
    ),
    "Replication": dict.fromkeys(("GetBucketReplication", "PutBucketReplication", "DeleteBucketReplication"), ""),
    "Encryption": dict.fromkeys(("GetBucketEncryption", "PutBucketEncryption", "DeleteBucketEncryption"), ""),
}  # fmt: skip

# Not meant to be: services of a provider around S3, or of kinds of buckets that there are not.
REFUSED: Mapping[str, Mapping[str, str]] = {
    "Accounting": dict.fromkeys(
        ("GetBucketRequestPayment", "PutBucketRequestPayment", "GetBucketAccelerateConfiguration", "PutBucketAccelerateConfiguration"), "nobody pays by request"
    ),
    "Reports": {
        f"{verb}Bucket{kind}Configuration{'s' if verb == 'List' else ''}": "the portal has its own reports"
        for kind in ("Analytics", "IntelligentTiering", "Inventory", "Metrics")
        for verb in ("Get", "Put", "Delete", "List")
    },
    "Metadata tables": dict.fromkeys(
        ("CreateBucketMetadataConfiguration", "GetBucketMetadataConfiguration", "DeleteBucketMetadataConfiguration",
         "CreateBucketMetadataTableConfiguration", "GetBucketMetadataTableConfiguration", "DeleteBucketMetadataTableConfiguration",
         "UpdateBucketMetadataAnnotationTableConfiguration", "UpdateBucketMetadataInventoryTableConfiguration", "UpdateBucketMetadataJournalTableConfiguration",
         "GetObjectAnnotation", "PutObjectAnnotation", "DeleteObjectAnnotation", "ListObjectAnnotations"), "",
    ),
    "Attributes of buckets": dict.fromkeys(("GetBucketAbac", "PutBucketAbac"), "policies of the portal know tags"),
    "Directory buckets": dict.fromkeys(("CreateSession", "RenameObject"), "there are none"),
    "Archives and queries": dict.fromkeys(("RestoreObject", "SelectObjectContent", "GetObjectTorrent", "UpdateObjectEncryption"), ""),
}  # fmt: skip

# Operations that share the address of another one, and cannot be told from it.
ELSEWHERE: Mapping[str, str] = {
    "ListDirectoryBuckets": "answered like ListBuckets: there are no directory buckets",
    "WriteGetObjectResponse": "asked of another host than S3's: there are no object lambdas",
}

KNOWN = {name for table in (SUPPORTED, REFUSED) for names in table.values() for name in names} | set(ELSEWHERE)


def conforms(*operations: str) -> Callable[[F], F]:
    """Say which operations a test holds against the documentation."""
    assert set(operations) <= KNOWN, set(operations) - KNOWN
    return lambda test: test


HEAD = """# S3 operations

**Document type:** Reference
**Status:** Implemented
**Version:** 0.1.0
**Last updated:** 2026-11-21
**Author:** Atonix Portal maintainers
**Review cycle:** With each release

## Executive summary

Every operation of the S3 API and where the gateway stands with it, written from the table that the conformance tests are held against:
what is supported has tests that follow the public documentation, everything else is refused with `NotImplemented` and changes nothing.

**Objectives:** know before a client finds out.

**Audience:** developers, operators.

"""
TAIL = """
## Related documentation

- [Object storage](object-storage.md)
"""


def page() -> str:
    """The page of the documentation."""
    parts = [HEAD]
    for title, table, standing in (("Supported", SUPPORTED, "yes"), ("Not planned", REFUSED, "no")):
        parts.append(f"## {title}\n\n| Group | Operation | Supported | |\n|---|---|---|---|\n")
        parts += [f"| {group} | {name} | {standing} | {note} |\n" for group, names in table.items() for name, note in sorted(names.items())]
        parts.append("\n")
    parts.append("## Without an address of their own\n\n| Operation | |\n|---|---|\n")
    parts += [f"| {name} | {note} |\n" for name, note in sorted(ELSEWHERE.items())]
    return "".join(parts) + TAIL
