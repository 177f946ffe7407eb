"""What can be shown of an object's bytes: the beginning of a text, or a picture. What somebody uploaded is never a page of the portal.

A text is escaped and bounded. A picture is one of a few kinds, known by its first bytes and not by what its sender says, and comes from an address of
its own that lets it do nothing.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from portal.engines.object_ports import BlobStore
from portal.kernel.context import Context
from portal.kernel.errors import NotFound, PortalError
from portal.storage.errors import ObjectDamaged
from portal.storage.objects import Found
from portal.storage.reading import object_open

TEXT_BYTES = 64 << 10
IMAGE_BYTES = 32 << 20
SIGNS = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF87a", "image/gif"), (b"GIF89a", "image/gif"))
SIGN_BYTES = 16
# What texts have besides letters: the ends of lines and pages, tabs, and the colours of logs.
PLAIN = frozenset("\t\n\r\f\x1b")
HEADERS = {"Content-Security-Policy": "default-src 'none'; sandbox", "Cross-Origin-Resource-Policy": "same-origin"}


@dataclass(frozen=True, slots=True)
class Preview:
    """What is shown: a text, a picture of a kind, or why neither."""

    text: str = ""
    is_cut: bool = False
    image: str = ""
    why_not: str = ""


def preview_of(ctx: Context, blobs: BlobStore, found: Found) -> Preview:
    """What can be shown of an object that the caller may read."""
    size = found.version.size_bytes
    if size == 0:
        return Preview(why_not="It is empty.")
    try:
        begin = b"".join(_bytes(ctx, blobs, found, min(size, TEXT_BYTES)))
    except ObjectDamaged:
        return Preview(why_not="Its bytes are damaged: what is stored is not what was written.")
    except PortalError as error:
        return Preview(why_not=error.message)
    if kind := image_kind(begin):
        return Preview(image=kind) if size <= IMAGE_BYTES else Preview(why_not=f"Pictures are shown up to {IMAGE_BYTES >> 20} MiB.")
    text = _text(begin, is_whole=len(begin) == size)
    return Preview(why_not="It is neither a text nor a picture that is shown here.") if text is None else Preview(text, len(begin) < size)


def image_of(ctx: Context, blobs: BlobStore, found: Found) -> tuple[str, Iterator[bytes]]:
    """(kind, bytes) of a picture that is shown. Raises NotFound for anything else."""
    size = found.version.size_bytes
    kind = image_kind(b"".join(_bytes(ctx, blobs, found, min(size, SIGN_BYTES)))) if 0 < size <= IMAGE_BYTES else ""
    if not kind:
        raise NotFound("This is no picture that is shown here.")
    return kind, _bytes(ctx, blobs, found, size)


def _bytes(ctx: Context, blobs: BlobStore, found: Found, count: int) -> Iterator[bytes]:
    return object_open(ctx, blobs, found, (0, count))


def image_kind(begin: bytes) -> str:
    """The kind of picture that begins so; empty for what is none that is shown."""
    if begin.startswith(b"RIFF") and begin[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for sign, kind in SIGNS if begin.startswith(sign)), "")


def _text(begin: bytes, *, is_whole: bool) -> str | None:
    try:
        # A letter may be cut in two where a long text is.
        text = codecs.getincrementaldecoder("utf-8")().decode(begin, is_whole)
    except UnicodeDecodeError:
        return None
    return text if all(each.isprintable() or each in PLAIN or ord(each) > 0x7F for each in text) else None  # noqa: PLR2004 - beyond ASCII
