"""What requests about objects carry, and what answers look like."""

from pydantic import AwareDatetime, Field

from portal.api.endpoints import Schema
from portal.api.schemas import MAYBE_TEXT, NUMBER, TEXT, WHEN, YES, Input, thing
from portal.storage.locks import MODES
from portal.storage.uploads import MOST_PARTS

MOST = 1000
OBJECT = thing(
    key=TEXT, object_key=TEXT, size_bytes=NUMBER, etag=TEXT, version_id=TEXT, content_type=TEXT, storage_class=TEXT, acl=TEXT, is_public=YES,
    last_modified=WHEN, metadata={"type": "object"}, tags={"type": "object"}, retention_mode=MAYBE_TEXT, retain_until={"type": ["string", "null"], "format": "date-time"},
    legal_hold=YES, encryption=TEXT, kms_key_id=MAYBE_TEXT,
)  # fmt: skip
ENTRY = thing(key=TEXT, object_key=TEXT, size_bytes=NUMBER, etag=TEXT, storage_class=TEXT, last_modified=WHEN)
VERSION = thing(version_id=TEXT, is_latest=YES, size_bytes=NUMBER, etag=TEXT, last_modified=WHEN, delete_marker=YES)
LIST_OF = thing(objects={"type": "array", "items": ENTRY}, common_prefixes={"type": "array", "items": TEXT}, is_truncated=YES, next_marker=MAYBE_TEXT)
BYTES: Schema = {"type": "string", "format": "binary"}


class Change(Input):
    """What is said of an object; what is left out stays."""

    metadata: dict[str, str] | None = None
    tags: dict[str, str] | None = None
    content_type: str | None = Field(None, max_length=255)


class RetentionInput(Input):
    """Until when a version is kept; an empty mode says that it is not."""

    mode: str = Field(json_schema_extra={"enum": ["", *MODES]})
    retain_until: AwareDatetime | None = Field(None, strict=False)
    bypass_retention: bool = Field(False, description="Weaken a retention that gives way.")


class HoldInput(Input):
    """Whether a version is under a legal hold."""

    enabled: bool


class ClassInput(Input):
    """Where an object is to be."""

    storage_class: str = Field(max_length=32)


class CopyInput(Input):
    """Where a copy goes."""

    destination_key: str = Field(max_length=1024)
    destination_bucket: str = Field("", max_length=64, description="Name or id; the same bucket unless given.")


class RestoreInput(Input):
    """Which version is to be the newest again."""

    version_id: str = Field(max_length=64)


class DeleteInput(Input):
    """What is to be deleted: keys, or everything under a prefix, at most 1,000 at a time."""

    keys: list[str] = Field(default_factory=list, max_length=MOST)
    prefix: str | None = None


class PresignInput(Input):
    """What an address is to be good for."""

    key: str = Field(max_length=1024)
    method: str = Field("GET", json_schema_extra={"enum": ["GET", "HEAD", "PUT", "DELETE"]})
    expires_in: int = Field(3600, ge=1, le=604_800, description="Seconds.")


class UploadInput(Input):
    """What an upload in parts is to become."""

    key: str = Field(max_length=1024)
    content_type: str = Field("", max_length=255)
    metadata: dict[str, str] = Field(default_factory=dict)


class PartInput(Input):
    """A part that has arrived."""

    number: int = Field(ge=1, le=MOST_PARTS)
    etag: str = Field(max_length=64)


class CompleteInput(Input):
    """The parts that the object consists of, in order."""

    parts: list[PartInput] = Field(max_length=MOST_PARTS)
