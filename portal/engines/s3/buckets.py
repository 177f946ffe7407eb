"""Buckets and objects by S3 itself, as the holder of one key."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from typing import Any
from urllib.parse import urlencode

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from portal.engines.object_engine_ports import TAKEN, BucketWanted, EngineListing, EngineObject, ObjectRefused, Sent
from portal.engines.ports import EngineUnavailable
from portal.engines.s3.calls import SILENT, call, refusal

MARK = "atonix-bucket"
PIECE = 1 << 20
EVERYBODY = "http://acs.amazonaws.com/groups/global/AllUsers"
VERSIONING = {"Enabled": "enabled", "Suspended": "suspended"}
# Headers that are kept with an object → what botocore calls them.
HEADERS = {
    "content-type": "ContentType", "cache-control": "CacheControl", "content-disposition": "ContentDisposition",
    "content-encoding": "ContentEncoding", "content-language": "ContentLanguage",
}  # fmt: skip
# After every key that begins with a prefix.
LAST = "\U0010ffff"
NOTHING_SET = frozenset({"NoSuchTagSet", "NoSuchTagSetError", "NoSuchCORSConfiguration", "NoSuchLifecycleConfiguration", "NoSuchBucketPolicy"})
AMAZON = ".amazonaws.com"
FIRST_REGION = "us-east-1"


class S3Buckets:
    """What one key sees."""

    def __init__(self, client: Any) -> None:
        """`client` is botocore's, for S3."""
        self._client = client

    def ping(self) -> None:
        """Raise what is wrong with engine or key."""
        call(self._client, "list_buckets")

    # -- buckets -----------------------------------------------------------------------------------------------------------------------------

    def is_there(self, bucket: str) -> bool:
        """By its tags, which hold the mark."""
        return self._mark(bucket) is not None

    def ensure_bucket(self, wanted: BucketWanted, *, is_begun: bool = False, claimed: Callable[[], None] | None = None) -> None:
        """Make it if it is absent, mark it, and set what differs."""
        name, mark = wanted.name, self._mark(wanted.name)
        if mark is None:
            self._create(name)
        if mark in {None, ""}:
            if (mark == "" and not is_begun) or not self._is_empty(name):
                raise ObjectRefused(TAKEN, f"The engine has a bucket {name} already that the portal did not make. Choose another name.")
            call(self._client, "put_bucket_tagging", Bucket=name, Tagging={"TagSet": [{"Key": MARK, "Value": wanted.mark}]})
        elif mark != wanted.mark:
            raise ObjectRefused(TAKEN, f"The engine has another bucket {name}. Choose another name.")
        if claimed is not None:
            claimed()
        # First of all who may come in: whatever else is refused, nobody stays who was to go.
        self._set(name, "policy", dict(wanted.policy or {}), Policy=json.dumps)
        if self._versioning(name) != wanted.versioning:
            status = "Enabled" if wanted.versioning == "enabled" else "Suspended"
            call(self._client, "put_bucket_versioning", Bucket=name, VersioningConfiguration={"Status": status})
        self._set(name, "cors", [dict(rule) for rule in wanted.cors], CORSConfiguration=lambda rules: {"CORSRules": rules})
        rules = [dict(rule) for rule in wanted.rules]
        self._set(name, "lifecycle", rules, also="_configuration", LifecycleConfiguration=lambda rules: {"Rules": rules})

    def _set(self, bucket: str, what: str, wanted: Any, *, also: str = "", **document: Any) -> None:
        if not wanted:
            call(self._client, f"delete_bucket_{what}", Bucket=bucket)
            return
        (name, made), *_ = document.items()
        call(self._client, f"put_bucket_{what}{also}", Bucket=bucket, **{name: made(wanted)})

    def differs(self, wanted: BucketWanted) -> bool:
        """Compare what the engine says."""
        name = wanted.name
        if self._mark(name) != wanted.mark or self._versioning(name) != wanted.versioning:
            return True
        policy = json.loads(self._get("policy", name).get("Policy", "{}"))
        cors = self._get("cors", name).get("CORSRules", [])
        rules = self._get("lifecycle_configuration", name).get("Rules", [])
        return policy != (wanted.policy or {}) or _plain(cors) != _plain(wanted.cors) or _plain(rules) != _plain(wanted.rules)

    def _get(self, what: str, bucket: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = call(self._client, f"get_bucket_{what}", Bucket=bucket)
        except ObjectRefused as error:
            if error.code in NOTHING_SET:
                return {}
            raise
        return found

    def _mark(self, bucket: str) -> str | None:
        """Whose bucket it is; empty if it has no mark, None if there is no such bucket."""
        try:
            tags = self._get("tagging", bucket).get("TagSet", [])
        except ObjectRefused as error:
            if error.code == "NoSuchBucket":
                return None
            if error.code == "AccessDenied":
                raise ObjectRefused(TAKEN, f"Somebody else has a bucket {bucket} at the engine. Choose another name.") from error
            raise
        return next((str(tag["Value"]) for tag in tags if tag["Key"] == MARK), "")

    def _create(self, bucket: str) -> None:
        region = self._client.meta.region_name
        place = {"CreateBucketConfiguration": {"LocationConstraint": region}} if self._is_amazon() and region != FIRST_REGION else {}
        try:
            call(self._client, "create_bucket", Bucket=bucket, **place)
        except ObjectRefused as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise

    def _is_amazon(self) -> bool:
        return AMAZON in str(self._client.meta.endpoint_url)

    def _versioning(self, bucket: str) -> str:
        return VERSIONING.get(call(self._client, "get_bucket_versioning", Bucket=bucket).get("Status", ""), "off")

    def _is_empty(self, bucket: str) -> bool:
        found = call(self._client, "list_object_versions", Bucket=bucket, MaxKeys=1)
        return not found.get("Versions") and not found.get("DeleteMarkers")

    def remove_bucket(self, name: str, mark: str, *, force: bool) -> None:
        """Empty it, if that is asked for, and remove it; one with another mark is not the one that was meant."""
        try:
            is_other = self._mark(name) != mark
        except ObjectRefused as error:
            if error.code != TAKEN:
                raise
            is_other = True
        if is_other:
            return
        if force:
            self._empty(name)
        try:
            call(self._client, "delete_bucket", Bucket=name)
        except ObjectRefused as error:
            if error.code != "NoSuchBucket":
                raise

    def _empty(self, bucket: str) -> None:
        for upload in call(self._client, "list_multipart_uploads", Bucket=bucket).get("Uploads", []):
            self.abort_upload(bucket, upload["Key"], upload["UploadId"])
        while True:
            found = call(self._client, "list_object_versions", Bucket=bucket)
            gone = [{"Key": each["Key"], "VersionId": each["VersionId"]} for kind in ("Versions", "DeleteMarkers") for each in found.get(kind, [])]
            if not gone:
                return
            done = call(self._client, "delete_objects", Bucket=bucket, Delete={"Objects": gone, "Quiet": True})
            if done.get("Errors"):
                raise ObjectRefused(str(done["Errors"][0].get("Code", "")), f"The engine did not delete everything in {bucket}.")

    # -- objects -----------------------------------------------------------------------------------------------------------------------------

    def find(self, bucket: str, key: str, version_id: str = "") -> EngineObject:
        """Ask for what is said of it, for its tags if it has some, and for who may read it."""
        where = {"Bucket": bucket, "Key": key, **_version(version_id)}
        try:
            head = self._client.head_object(**where)
        except ClientError as error:
            problem = _absent(error, version_id)
            if isinstance(problem, ObjectRefused) and problem.code == "NoSuchVersion" and self._is_marker(bucket, key, version_id):
                raise ObjectRefused("MethodNotAllowed", "The version is the mark of a deletion.") from error
            raise problem from error
        except BotoCoreError as error:
            raise EngineUnavailable(SILENT) from error
        tags = {}
        if head.get("TagCount") or "x-amz-tagging-count" in head["ResponseMetadata"]["HTTPHeaders"]:
            tags = {each["Key"]: each["Value"] for each in call(self._client, "get_object_tagging", **where).get("TagSet", [])}
        grants = call(self._client, "get_object_acl", **where).get("Grants", [])
        return EngineObject(
            key, head.get("VersionId") or "null", head["ContentLength"], head["ETag"].strip('"'), head["LastModified"], head.get("StorageClass", "STANDARD"),
            {name: head[given] for name, given in HEADERS.items() if head.get(given)}, head.get("Metadata", {}), tags,
            is_public=any(grant.get("Grantee", {}).get("URI") == EVERYBODY for grant in grants),
        )  # fmt: skip

    def _is_marker(self, bucket: str, key: str, version_id: str) -> bool:
        """Not every engine says so when it is asked for one."""
        return any((each.key, each.version_id, each.is_marker) == (key, version_id, True) for each in self.versions(bucket, key).objects)

    def open(self, bucket: str, found: EngineObject, first: int, length: int) -> Iterator[bytes]:
        """Stream it; an object that was written over since is refused."""
        if not length:
            return iter(())
        asked = {
            "Bucket": bucket,
            "Key": found.key,
            "Range": f"bytes={first}-{first + length - 1}",
            "IfMatch": found.etag,
            **_version(found.version_id),
        }
        return _pieces(call(self._client, "get_object", **asked)["Body"])

    def put(self, bucket: str, key: str, sent: Sent, about: EngineObject) -> EngineObject:
        """Stream it there."""
        made = self._send("put_object", sent, Bucket=bucket, Key=key, **_said(about))
        return self.find(bucket, key, made.get("VersionId", ""))

    def _send(self, name: str, sent: Sent, **given: Any) -> Any:
        stream = _Stream(sent)
        md5 = {"ContentMD5": sent.md5} if sent.md5 else {}
        try:
            return getattr(self._client, name)(Body=stream, ContentLength=sent.size_bytes, **md5, **given)
        except ParamValidationError as error:
            raise ObjectRefused("InvalidArgument", "Metadata of objects must be plain ASCII at this engine.") from error
        except ClientError as error:
            raise refusal(error) from error
        except BotoCoreError as error:
            if stream.error is not None:
                raise stream.error from None
            raise EngineUnavailable(SILENT) from error

    def copy(self, bucket: str, found: EngineObject, to_bucket: str, about: EngineObject) -> EngineObject:
        """Have the engine copy it."""
        source = {"Bucket": bucket, "Key": found.key, **_version(found.version_id)}
        made = call(self._client, "copy_object", Bucket=to_bucket, Key=about.key, CopySource=source, MetadataDirective="REPLACE",
                    TaggingDirective="REPLACE", **_said(about))  # fmt: skip
        if about.tags:
            # RGW forgets them in a copy.
            self._tag(to_bucket, about.key, made.get("VersionId", ""), about.tags)
        return self.find(to_bucket, about.key, made.get("VersionId", ""))

    def say(self, bucket: str, found: EngineObject, about: EngineObject) -> EngineObject:
        """A copy over itself where type or metadata change; it is a new version then."""
        if (found.headers, found.user_metadata) != (about.headers, about.user_metadata):
            found = self.copy(bucket, found, bucket, about)
        where = {"Bucket": bucket, "Key": found.key, **_version(found.version_id)}
        if found.tags != about.tags:
            self._tag(bucket, found.key, found.version_id, about.tags)
        if found.is_public != about.is_public:
            call(self._client, "put_object_acl", **where, ACL="public-read" if about.is_public else "private")
        return self.find(bucket, found.key, found.version_id)

    def _tag(self, bucket: str, key: str, version_id: str, tags: Mapping[str, str]) -> None:
        named = [{"Key": name, "Value": value} for name, value in tags.items()]
        call(self._client, "put_object_tagging", Bucket=bucket, Key=key, **_version(version_id), Tagging={"TagSet": named})

    def remove(self, bucket: str, key: str, version_id: str = "") -> EngineObject:
        """As S3 does it."""
        gone = call(self._client, "delete_object", Bucket=bucket, Key=key, **_version(version_id))
        return EngineObject(key, gone.get("VersionId", ""), is_marker=bool(gone.get("DeleteMarker")))

    def list(self, bucket: str, prefix: str, *, delimiter: str = "", after: str = "", limit: int = 1000) -> EngineListing:
        """A page; after a prefix that was given, nothing of that comes again."""
        rolled = delimiter and after.endswith(delimiter) and after.startswith(prefix)
        asked = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": limit, "StartAfter": after + LAST if rolled else after}
        found = call(self._client, "list_objects_v2", **asked, **({"Delimiter": delimiter} if delimiter else {}))
        return EngineListing(
            [_entry(each) for each in found.get("Contents", [])], [each["Prefix"] for each in found.get("CommonPrefixes", [])], bool(found.get("IsTruncated"))
        )  # fmt: skip

    def versions(self, bucket: str, prefix: str) -> EngineListing:
        """The first thousand."""
        found = call(self._client, "list_object_versions", Bucket=bucket, Prefix=prefix)
        rows = [(each, False) for each in found.get("Versions", [])] + [(each, True) for each in found.get("DeleteMarkers", [])]
        rows.sort(key=lambda row: (row[0]["Key"].encode(), not row[0]["IsLatest"], -row[0]["LastModified"].timestamp()))
        return EngineListing([_entry(each, is_marker=is_marker) for each, is_marker in rows], is_truncated=bool(found.get("IsTruncated")))

    # -- uploads in parts --------------------------------------------------------------------------------------------------------------------

    def begin_upload(self, bucket: str, about: EngineObject) -> str:
        """The engine's id of it."""
        return str(call(self._client, "create_multipart_upload", Bucket=bucket, Key=about.key, **_said(about))["UploadId"])

    def put_part(self, bucket: str, key: str, upload_id: str, number: int, sent: Sent) -> str:
        """Stream a part there."""
        made = self._send("upload_part", sent, Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number)
        return str(made["ETag"]).strip('"')

    def complete_upload(self, bucket: str, key: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> None:
        """Have the engine put it together."""
        named = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in parts]
        call(self._client, "complete_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": named})

    def abort_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """Give it up."""
        call(self._client, "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id)


class _Stream:
    """What arrives, as botocore reads it; it remembers why it broke off."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        self._left = sent.size_bytes
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        if not self._left or self.error is not None:
            return b""
        try:
            piece = self._sent.read(self._left if size < 0 else min(size, self._left))
        except Exception as error:
            self.error = error
            raise
        if not piece:
            arrived = self._sent.size_bytes - self._left
            self.error = ObjectRefused(
                "IncompleteBody", f"The upload broke off: {arrived:,} of {self._sent.size_bytes:,} bytes arrived. Send it again."
            )
            raise self.error
        self._left -= len(piece)
        return piece


def _pieces(body: Any) -> Iterator[bytes]:
    try:
        yield from body.iter_chunks(PIECE)
    except BotoCoreError as error:
        raise EngineUnavailable(SILENT) from error
    finally:
        body.close()


def _plain(rules: Sequence[Any]) -> list[str]:
    """Rules in one way of writing them, of the several that engines have."""
    return sorted(json.dumps(_written(rule), sort_keys=True) for rule in rules)


def _written(rule: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {
        name: sorted(value) if isinstance(value, list) else value for name, value in rule.items() if name not in {"Filter", "Prefix"}
    }
    chosen = rule.get("Filter", {})
    both = {**chosen, **chosen.get("And", {})}
    tags = both.get("Tags", []) + ([both["Tag"]] if "Tag" in both else [])
    moment = kept.get("Expiration", {}).get("Date")
    if moment is not None:
        kept["Expiration"] = {"Date": moment.astimezone(UTC).isoformat()}
    return {**kept, "prefix": both.get("Prefix", rule.get("Prefix", "")), "tags": sorted(f"{tag['Key']}={tag['Value']}" for tag in tags)}


def _version(version_id: str) -> dict[str, str]:
    return {"VersionId": version_id} if version_id and version_id != "null" else {}


def _said(about: EngineObject) -> dict[str, Any]:
    tags = {"Tagging": urlencode(about.tags)} if about.tags else {}
    return {**{HEADERS[name]: value for name, value in about.headers.items() if name in HEADERS}, "Metadata": dict(about.user_metadata), **tags}


def _entry(row: Any, *, is_marker: bool = False) -> EngineObject:
    return EngineObject(
        row["Key"], row.get("VersionId", "null"), row.get("Size", 0), row.get("ETag", "").strip('"'), row["LastModified"],
        row.get("StorageClass", "STANDARD"), is_marker=is_marker,
    )  # fmt: skip


def _absent(error: ClientError, version_id: str) -> ObjectRefused | EngineUnavailable:
    """An answer to HEAD has no body, so that its code says little."""
    codes = {400: "NoSuchVersion" if version_id else "InvalidURI", 403: "AccessDenied", 404: "NoSuchVersion" if version_id else "NoSuchKey",
             405: "MethodNotAllowed"}  # fmt: skip
    about = error.response.get("ResponseMetadata", {})
    status = about.get("HTTPStatusCode", 0)
    said = "The engine for objects takes no such key." if codes.get(status) == "InvalidURI" else "There is no such object at the engine."
    return ObjectRefused(codes[status], said) if status in codes else refusal(error)
