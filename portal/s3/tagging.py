"""Tags of objects and of buckets."""

from collections.abc import Mapping

from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.s3.heads import MOST_TAGS, checked_tags, version_header
from portal.storage.access import WRITE
from portal.storage.buckets import BUCKET, bucket_update
from portal.storage.facts import bucket_named
from portal.storage.object_models import Bucket
from portal.storage.objects import object_find, object_say

MOST_OF_BUCKET = 50
# What the portal keeps of the tags of a resource.
KEY_MAX, VALUE_MAX = 100, 255


def tags_in(node: xml.Node, most: int = MOST_TAGS) -> dict[str, str]:
    """The tags of a document. Raises MalformedXML or InvalidTag."""
    tag_set = node.child("TagSet")
    if tag_set is None:
        raise S3Error("MalformedXML")
    return checked_tags([(tag.value("Key") or "", tag.value("Value") or "") for tag in tag_set.children_named("Tag")], most)


def _document(tags: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Answer:
    listed = [xml.group("Tag", xml.leaf("Key", name), xml.leaf("Value", value)) for name, value in tags.items()]
    return document("Tagging", xml.group("TagSet", *listed), headers=headers)


def get(x: Exchange) -> Answer:
    """The tags of an object."""
    found = object_find(x.ctx, x.bucket, x.key, x.parameter("versionId"), called=_called("Get", x))
    return _document(found.version.tags, version_header(found.bucket, found.version))


def put(x: Exchange) -> Answer:
    """Give an object tags, in place of those it has."""
    return _say(x, "Put", tags_in(x.document("Tagging")), 200)


def delete(x: Exchange) -> Answer:
    """Take all tags of an object away."""
    return _say(x, "Delete", {}, 204)


def _called(verb: str, x: Exchange) -> str:
    return f"{verb}Object{'Version' if x.parameter('versionId') else ''}Tagging"


def _say(x: Exchange, verb: str, tags: Mapping[str, str], status: int) -> Answer:
    bucket, version = object_say(x.ctx, x.bucket, x.key, x.parameter("versionId"), WRITE, called=_called(verb, x), tags=dict(tags))
    return Answer(status, version_header(bucket, version))


def get_bucket(x: Exchange) -> Answer:
    """The tags of a bucket."""
    # Tags say what things are for: who may list a bucket, which may be everybody, need not know.
    bucket: Bucket = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id)
    if not bucket.tags:
        raise S3Error("NoSuchTagSet")
    return _document(bucket.tags)


def put_bucket(x: Exchange) -> Answer:
    """Give a bucket tags, in place of those it has: the same that the console shows."""
    tags = tags_in(x.document("Tagging"), MOST_OF_BUCKET)
    if any(len(name) > KEY_MAX or len(value) > VALUE_MAX for name, value in tags.items()):
        raise S3Error("InvalidTag", f"Tags of buckets have keys of at most {KEY_MAX} and values of at most {VALUE_MAX} characters here.")
    return _say_bucket(x, tags)


def delete_bucket(x: Exchange) -> Answer:
    """Take all tags of a bucket away."""
    return _say_bucket(x, {})


def _say_bucket(x: Exchange, tags: Mapping[str, str]) -> Answer:
    run(x.ctx, bucket_update, bucket_named(x.ctx.db, x.bucket).id, {"tags": dict(tags)})
    return Answer(204)
