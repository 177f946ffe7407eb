"""What the tests do with the library `minio`; run by the interpreter that has it, told by its input where the gateway is."""

import hashlib
import io
import json
import os
import sys
from datetime import timedelta

import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, ComposeSource, CopySource, Tags
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.versioningconfig import VersioningConfig

BUCKET = "with-minio"
MIB = 1 << 20
told = json.load(sys.stdin)
trust = {"cert_reqs": "CERT_REQUIRED", "ca_certs": told["ca"]} if told["secure"] else {}
pool = urllib3.PoolManager(timeout=60, retries=False, **trust)
client = Minio(
    told["host"],
    access_key=os.environ["AWS_ACCESS_KEY_ID"],
    secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    secure=told["secure"],
    http_client=pool,
)


def content(name: str, size: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(size)


def put(key: str, body: bytes, **more: object) -> None:
    client.put_object(BUCKET, key, io.BytesIO(body), len(body), **more)


def get(key: str, **more: object) -> bytes:
    answer = client.get_object(BUCKET, key, **more)
    try:
        return answer.read()
    finally:
        answer.close()
        answer.release_conn()


assert not client.bucket_exists(BUCKET)
client.make_bucket(BUCKET)
assert client.bucket_exists(BUCKET)
# The library itself refuses keys that a path would swallow.
keys = [key for key in told["keys"] if not {".", ".."} & set(key.split("/"))]
for key in keys:
    put(key, content(key, 50))
for key in keys:
    assert get(key) == content(key, 50), key
assert {each.object_name for each in client.list_objects(BUCKET, recursive=True)} == set(keys)

large = content("large", 12 * MIB)
put("large", large, part_size=5 * MIB, metadata={"colour": "red"})
assert get("large") == large
assert get("large", offset=5 * MIB - 1, length=3) == large[5 * MIB - 1 : 5 * MIB + 2]
found = client.stat_object(BUCKET, "large")
assert (found.size, found.metadata["x-amz-meta-colour"]) == (len(large), "red")
client.put_object(BUCKET, "unknown length", io.BytesIO(large), -1, part_size=5 * MIB)
assert get("unknown length") == large
client.compose_object(BUCKET, "composed", [ComposeSource(BUCKET, "large"), ComposeSource(BUCKET, "large", offset=0, length=7)])
assert get("composed") == large + large[:7]
client.copy_object(BUCKET, "copied", CopySource(BUCKET, "large"))
assert get("copied") == large

address = client.presigned_get_object(BUCKET, "copied", expires=timedelta(minutes=5))
assert pool.request("GET", address).data == large
address = client.presigned_put_object(BUCKET, "a key+%")
assert pool.request("PUT", address, body=b"sent").status == 200
assert get("a key+%") == b"sent"

tags = Tags.new_object_tags()
tags["a"] = "b c"
client.set_object_tags(BUCKET, "copied", tags)
assert dict(client.get_object_tags(BUCKET, "copied")) == {"a": "b c"}
client.set_bucket_versioning(BUCKET, VersioningConfig(ENABLED))
put("twice", b"1")
put("twice", b"2")
versions = [each.version_id for each in client.list_objects(BUCKET, prefix="twice", include_version=True)]
assert len(versions) == 2
assert get("twice", version_id=versions[1]) == b"1"
try:
    client.stat_object(BUCKET, "none")
except S3Error as error:
    assert error.code == "NoSuchKey", error  # noqa: PT017 - run without pytest
else:
    sys.exit("an object is there that nobody wrote")

every = [
    DeleteObject(each.object_name, each.version_id)
    for each in client.list_objects(BUCKET, recursive=True, include_version=True)
    if "\n" not in each.object_name
]
assert list(client.remove_objects(BUCKET, every)) == []
for each in client.list_objects(BUCKET, recursive=True, include_version=True):
    client.remove_object(BUCKET, each.object_name, each.version_id)
client.remove_bucket(BUCKET)
sys.stdout.write("done\n")
