"""What S3 clients say of encryption in headers, what they are told of it, and the encryption that buckets give to new objects."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from hmac import compare_digest
from typing import Any

from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.s3.requests import S3Request
from portal.storage.asked_encryption import ALGORITHMS, CUSTOMER_ALGORITHM, HEADER, KEY_HEADER
from portal.storage.bucket_encryption import bucket_set_encryption
from portal.storage.buckets import BUCKET
from portal.storage.encryption import CUSTOMER, NAMED, Asked, CustomerKey, customer_check, key_named
from portal.storage.errors import CustomerKeyMissing, CustomerKeyNotWanted, CustomerKeyWrong
from portal.storage.facts import bucket_named

KEY_ID, CONTEXT, BUCKET_KEY = KEY_HEADER, f"{HEADER}-context", f"{HEADER}-bucket-key-enabled"
CUSTOMER_HEADER = f"{HEADER}-customer"
SOURCE_HEADER = f"x-amz-copy-source{HEADER.removeprefix('x-amz')}-customer"
KINDS = {name: kind for kind, name in ALGORITHMS.items()}
KEY_BYTES = 32
BY_CUSTOMER = "Requests specifying Server Side Encryption with Customer provided keys must"


def customer_of(request: S3Request, header: str = CUSTOMER_HEADER) -> CustomerKey | None:
    """The key that a client sends along; None if it sends none. Raises what S3 says of one that is not right.

    It is taken of headers, and not of a signed address, which is written into logs.
    """
    if any(name.lower().startswith(header) for name in request.parameters):
        raise S3Error("InvalidArgument", "The key has to be sent in headers: an address is no place for it.", ArgumentName=f"{header}-key")
    algorithm, key, md5 = (request.header(f"{header}-{name}") for name in ("algorithm", "key", "key-md5"))
    if not algorithm and not key and not md5:
        return None
    if not request.is_secure:
        raise S3Error("InvalidRequest", f"{BY_CUSTOMER} be made over a secure connection.")
    for value, name, problem in (
        (algorithm, "algorithm", "provide a valid encryption algorithm."), (key, "key", "provide an appropriate secret key."),
        (md5, "key-MD5", "provide the client calculated MD5 of the secret key."),
    ):  # fmt: skip
        if not value:
            raise S3Error("InvalidArgument", f"{BY_CUSTOMER} {problem}", ArgumentName=f"{header}-{name}")
    if algorithm != CUSTOMER_ALGORITHM:
        raise S3Error("InvalidEncryptionAlgorithmError", "The Encryption request you specified is not valid. Supported value: AES256.")
    plain = _decoded(key)
    if len(plain) != KEY_BYTES:
        raise S3Error("InvalidArgument", "The secret key was invalid for the specified algorithm.", ArgumentName=f"{header}-key")
    if not compare_digest(hashlib.md5(plain, usedforsecurity=False).digest(), _decoded(md5)):
        raise S3Error(
            "InvalidArgument", "The calculated MD5 hash of the key did not match the hash that was provided.", ArgumentName=f"{header}-key-MD5"
        )
    return CustomerKey(plain, base64.b64encode(_decoded(md5)).decode())


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def asked_of(request: S3Request) -> Asked:
    """What a request that writes an object says of its encryption. Raises what S3 says of what is not right."""
    customer = customer_of(request)
    algorithm, key, bucket_key = (request.header(name) for name in (HEADER, KEY_ID, BUCKET_KEY))
    if request.header(CONTEXT):
        raise S3Error("NotImplemented", "An encryption context is not kept here: each object has one of its own.")
    if customer is not None:
        if algorithm or key:
            problem = "Server Side Encryption with Customer provided key is incompatible with the encryption method specified"
            raise S3Error("InvalidArgument", problem, ArgumentName=HEADER, ArgumentValue=algorithm[:64])
        return Asked(CUSTOMER, customer=customer)
    if algorithm and algorithm not in KINDS:
        raise S3Error("InvalidArgument", "The encryption method specified is not supported", ArgumentName=HEADER, ArgumentValue=algorithm[:64])
    if key and algorithm != ALGORITHMS[NAMED]:
        problem = f"Server Side Encryption with AWS KMS managed key requires HTTP header {HEADER} : {ALGORITHMS[NAMED]}"
        raise S3Error("InvalidArgument", problem, ArgumentName=HEADER, ArgumentValue=algorithm[:64])
    if bucket_key and bucket_key.lower() not in {"true", "false"}:
        raise S3Error("InvalidArgument", f"The {BUCKET_KEY} header is invalid.", ArgumentName=BUCKET_KEY, ArgumentValue=bucket_key[:64])
    return Asked(KINDS.get(algorithm, ""), key, bucket_key=bucket_key.lower() == "true" if bucket_key else None)


def read_with(x: Exchange, row: Any) -> CustomerKey | None:
    """The key that a reader sends along, which has to be the right one. Raises what S3 says of those that are not."""
    if any(x.request.header(name) for name in (HEADER, KEY_ID)):
        raise S3Error("InvalidArgument", f"{HEADER} header is not supported for this operation.", ArgumentName=HEADER)
    customer = customer_of(x.request)
    customer_check(row, customer)
    return customer


def part_with(x: Exchange, upload: Any) -> CustomerKey | None:
    """The same of who sends a part of an upload."""
    customer = customer_of(x.request)
    try:
        customer_check(upload, customer)
    except CustomerKeyMissing:
        problem = "The multipart upload initiate requested encryption. Subsequent part requests must include the appropriate encryption parameters."
        raise S3Error("InvalidRequest", problem) from None
    except CustomerKeyNotWanted:
        problem = "The multipart upload initiate did not request encryption. Please resend the request without sending encryption parameters."
        raise S3Error("InvalidRequest", problem) from None
    except CustomerKeyWrong:
        raise S3Error("InvalidRequest", "The provided encryption parameters did not match the ones used originally.") from None
    return customer


def encryption_headers(row: Any, customer: CustomerKey | None = None) -> dict[str, str]:
    """What is told of how a version or upload is encrypted."""
    if row.encryption == CUSTOMER:
        return {f"{CUSTOMER_HEADER}-algorithm": CUSTOMER_ALGORITHM} | ({f"{CUSTOMER_HEADER}-key-MD5": customer.md5} if customer is not None else {})
    if not row.encryption:
        return {}
    said = {HEADER: ALGORITHMS[row.encryption]}
    if row.encryption == NAMED:
        said[KEY_ID] = row.kms_key_id or ""
    return said | ({BUCKET_KEY: "true"} if row.bucket_key else {})


# -- of buckets ------------------------------------------------------------------------------------------------------------------------------


def get_bucket(x: Exchange) -> Answer:
    """How new objects are encrypted that are sent without a word about it."""
    bucket = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id)
    if bucket.encryption_type == "none":
        raise S3Error("ServerSideEncryptionConfigurationNotFoundError")
    key = [xml.leaf("KMSMasterKeyID", bucket.kms_key_id)] if bucket.kms_key_id else []
    usual = xml.group("ApplyServerSideEncryptionByDefault", xml.leaf("SSEAlgorithm", ALGORITHMS[bucket.encryption_type]), *key)
    rule = xml.group("Rule", usual, xml.leaf("BucketKeyEnabled", bucket.bucket_key_enabled))
    return document("ServerSideEncryptionConfiguration", rule)


def put_bucket(x: Exchange) -> Answer:
    """Set that; it has one rule."""
    rules = list(x.document("ServerSideEncryptionConfiguration").children_named("Rule"))
    usual = list(rules[0].children_named("ApplyServerSideEncryptionByDefault")) if len(rules) == 1 else []
    algorithm = (usual[0].value("SSEAlgorithm") or "") if len(usual) == 1 else ""
    bucket_key = (rules[0].value("BucketKeyEnabled") or "false").lower() if usual else ""
    if algorithm not in KINDS or bucket_key not in {"true", "false"}:
        raise S3Error("MalformedXML")
    name = usual[0].value("KMSMasterKeyID") or ""
    if name and KINDS[algorithm] != NAMED:
        raise S3Error("InvalidArgument", "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms")
    bucket = bucket_named(x.ctx.db, x.bucket)
    # Who may see the bucket; whether the caller may change it and use the key is asked for below.
    find(x.ctx, BUCKET, bucket.id)
    key = {"kms_key": key_named(x.ctx, bucket.project_id, name).id} if name else {}
    return _set(x, bucket.id, {"type": KINDS[algorithm], "bucket_key_enabled": bucket_key == "true", **key}, 200)


def delete_bucket(x: Exchange) -> Answer:
    """Take it away; what is there stays as it is."""
    return _set(x, bucket_named(x.ctx.db, x.bucket).id, {"type": "none"}, 204)


def _set(x: Exchange, bucket_id: str, given: Mapping[str, Any], status: int) -> Answer:
    try:
        run(x.ctx, bucket_set_encryption, bucket_id, dict(given))
    except InvalidRequest as error:
        raise S3Error("InvalidArgument", error.message) from error
    return Answer(status)
