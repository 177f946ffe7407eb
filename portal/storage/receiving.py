"""Bytes that arrive as a plain stream, from the API and the console; the S3 gateway reads its own, which are signed and framed."""

import base64
import binascii
import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

from portal.engines.object_ports import Blob, BlobStore
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, PortalError, TooLarge, Unavailable
from portal.storage.encryption import NOTHING, PORTAL, Asked, CustomerKey, encryption_for, encryption_of, key_of_row
from portal.storage.facts import BucketFacts, Version
from portal.storage.object_models import ObjectPart
from portal.storage.objects import ANY, About, Condition, Content, Found, object_put, refuse_early
from portal.storage.reading import object_linked, object_open
from portal.storage.uploads import Named, part_put, upload_find

MAX_OBJECT = 5 << 30
PIECE = 1 << 20


def receive(blobs: BlobStore, read: Callable[[int], bytes], about: About, *, length: int | None, md5: str = "") -> Content:
    """Have a stream on the disk. Raises TooLarge, and InvalidRequest for one that broke off or is not what its Content-MD5 (base64) says."""
    if length is not None and length > MAX_OBJECT:
        raise TooLarge(f"An object that is sent at once has at most {MAX_OBJECT >> 30} GiB; send a larger one in parts.")
    calculated, size = hashlib.md5(usedforsecurity=False), 0
    with blobs.writing(about.storage_class, about.encryption.key) as writer:
        while piece := read(PIECE):
            size += len(piece)
            if size > MAX_OBJECT:
                raise TooLarge(f"An object that is sent at once has at most {MAX_OBJECT >> 30} GiB; send a larger one in parts.")
            calculated.update(piece)
            writer.write(piece)
        if length is not None and size != length:
            raise InvalidRequest(f"The upload broke off: {size:,} of {length:,} bytes arrived. Send it again.")
        if md5 and _digest(md5) != calculated.digest():
            raise InvalidRequest("What arrived is not what Content-MD5 says. Send it again.")
        return Content(about.encryption.etag(calculated.hexdigest()), writer.finish())


def _digest(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("Content-MD5 must be the MD5 digest in base64.") from None


def object_receive(
    ctx: Context, blobs: BlobStore, where: tuple[str, str], about: About, read: Callable[[int], bytes], *, length: int | None, md5: str = "",
    condition: Condition = ANY,
) -> tuple[Version, BucketFacts]:  # fmt: skip
    """Write the object that a stream brings to a (bucket, key)."""
    bucket = refuse_early(ctx, *where, condition, size_bytes=length)
    about = replace(about, encryption=encryption_for(ctx, bucket, where[1], NOTHING))
    ctx.db.rollback()
    content = receive(blobs, read, about, length=length, md5=md5)
    try:
        return object_put(ctx, bucket, where[1], content, about, condition=condition)
    except PortalError as error:
        _forget(blobs, content, error)
        raise


def part_receive(ctx: Context, blobs: BlobStore, named: Named, number: int, read: Callable[[int], bytes], *, length: int | None) -> ObjectPart:
    """Keep the part of an upload that a stream brings."""
    bucket, upload = upload_find(ctx, named, size_bytes=length or 0)
    encryption = replace(encryption_of(upload), key=key_of_row(ctx, bucket, upload))
    about = About(storage_class=upload.storage_class, encryption=encryption)
    ctx.db.rollback()
    content = receive(blobs, read, about, length=length)
    try:
        return part_put(ctx, named, number, content)
    except PortalError as error:
        _forget(blobs, content, error)
        raise


def _forget(blobs: BlobStore, content: Content, error: PortalError) -> None:
    # Where the database did not answer the row may be there all the same.
    if content.blob.id and not isinstance(error, Unavailable):
        blobs.remove(content.blob.id)


class Hasher(Protocol):
    """What bytes are calculated with on their way."""

    def update(self, block: bytes, /) -> None:
        """Go on with these bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Anew:
    """What is needed for writing something anew: the key that it is read with, if it is a client's, the one it is written with, and where."""

    customer: CustomerKey | None = None
    key: bytes | None = None
    storage_class: str = ""


def gather(ctx: Context, blobs: BlobStore, found: Found, span: tuple[int, int], anew: Anew, *hashers: Hasher) -> Blob:
    """Write a (first byte, length) of an object anew, as one blob. Raises ObjectChanged and ObjectDamaged."""
    pieces = object_open(ctx, blobs, found, span, anew.customer)
    ctx.db.rollback()
    with closing(pieces), blobs.writing(anew.storage_class, anew.key) as writer:
        for piece in pieces:
            for one in hashers:
                one.update(piece)
            writer.write(piece)
        return writer.finish()


def kept_encrypted(bucket: BucketFacts, source: Version, asked: Asked = NOTHING) -> Asked:
    """What a copy is asked to be: what was encrypted is so in its copy, where neither request nor bucket say anything."""
    return Asked(PORTAL) if asked == NOTHING and bucket.encryption_type == "none" and source.encryption else asked


def object_copy(
    ctx: Context, blobs: BlobStore, found: Found, to: tuple[str, str], *, condition: Condition = ANY
) -> tuple[Version, BucketFacts]:  # fmt: skip
    """Copy an object that the caller may read to a (bucket, key), with all that is said of it."""
    source = found.version
    bucket = refuse_early(ctx, *to, condition, size_bytes=source.size_bytes, encrypts=bool(source.encryption))
    encryption = encryption_for(ctx, bucket, to[1], kept_encrypted(bucket, source))
    about = About(source.headers, source.user_metadata, source.tags, source.storage_class, "private", source.checksum_algorithm, source.checksum_type,
                  encryption=encryption)  # fmt: skip
    if source.upload_id is None and not source.encryption and not encryption.kind:
        ctx.db.rollback()
        content = Content(source.etag, object_linked(ctx, blobs, found, source.storage_class), checksum=source.checksum, how="Copy")
    else:
        md5 = hashlib.md5(usedforsecurity=False)
        blob = gather(ctx, blobs, found, (0, source.size_bytes), Anew(key=encryption.key, storage_class=source.storage_class), md5)
        is_whole = source.upload_id is None
        content = Content(encryption.etag(md5.hexdigest()), blob, checksum=source.checksum if is_whole else "", how="Copy")
        about = about if is_whole else replace(about, checksum_algorithm="", checksum_type="")
    try:
        return object_put(ctx, bucket, to[1], content, about, condition=condition)
    except PortalError as error:
        _forget(blobs, content, error)
        raise
