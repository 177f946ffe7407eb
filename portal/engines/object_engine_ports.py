"""What the portal asks of object storage that somebody else runs: buckets and objects under an account, and the accounts and keys themselves.

`object_ports` is one level lower: there the portal keeps objects itself and asks for nothing but room for bytes. Whatever makes or removes may be
called again with the same arguments; whatever is refused is an `ObjectRefused` with the code that S3 has for it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from portal.engines.ports import Capability, EngineRefused

# Somebody else has the name of a bucket.
TAKEN = "BucketAlreadyExists"


class ObjectRefused(EngineRefused):
    """The engine does not do it; `code` is the one of S3, such as NoSuchKey."""

    def __init__(self, code: str, message: str) -> None:
        """`message` is for users."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Key:
    """An access key at the engine."""

    id: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BucketWanted:
    """What a bucket is to be like. Without a policy, rules or tags it has none; `versioning` is off, enabled or suspended.

    `mark` tells it from a later bucket of the same name; `rules` and `cors` are as S3 has them.
    """

    name: str
    mark: str
    versioning: str = "off"
    cors: Sequence[Mapping[str, Any]] = ()
    rules: Sequence[Mapping[str, Any]] = ()
    policy: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class EngineObject:
    """A version of an object at the engine; `is_marker` is the mark of a deletion. Listings know less than a look at one object."""

    key: str
    version_id: str
    size_bytes: int = 0
    etag: str = ""
    modified_at: datetime | None = None
    storage_class: str = "STANDARD"
    headers: Mapping[str, str] = field(default_factory=dict)
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    is_public: bool = False
    is_marker: bool = False


@dataclass(frozen=True, slots=True)
class EngineListing:
    """A page of a listing."""

    objects: Sequence[EngineObject]
    prefixes: Sequence[str] = ()
    is_truncated: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes on their way to the engine, which are read as they go there; MD5 in base64 where the sender gave one."""

    read: Callable[[int], bytes]
    size_bytes: int
    md5: str = ""


@dataclass(frozen=True, slots=True)
class BucketFigures:
    """What a bucket holds."""

    size_bytes: int
    objects: int


class Buckets(Protocol):
    """Buckets and objects as the holder of one key sees them."""

    def is_there(self, bucket: str) -> bool:
        """Whether there is a bucket of this name, whoever made it. Raises ObjectRefused (BucketAlreadyExists) if it is somebody else's."""
        ...

    def ensure_bucket(self, wanted: BucketWanted, *, is_begun: bool = False, claimed: Callable[[], None] | None = None) -> None:
        """There is such a bucket, made by the portal, and it is as wanted. One without a mark is the portal's only if it had begun to make it.

        `claimed` is called when it is the portal's, before anything else is set.
        Raises ObjectRefused (BucketAlreadyExists) if somebody else has the name.
        """
        ...

    def differs(self, wanted: BucketWanted) -> bool:
        """Whether the bucket is absent or other than wanted."""
        ...

    def remove_bucket(self, name: str, mark: str, *, force: bool) -> None:
        """The bucket of this mark is gone, with what is in it if `force`. Raises ObjectRefused (BucketNotEmpty)."""
        ...

    def find(self, bucket: str, key: str, version_id: str = "") -> EngineObject:
        """What is known of an object. Raises ObjectRefused (NoSuchKey, NoSuchVersion, MethodNotAllowed for a mark of deletion)."""
        ...

    def open(self, bucket: str, found: EngineObject, first: int, length: int) -> Iterator[bytes]:
        """Some bytes of this very version; the first piece is there when this returns."""
        ...

    def put(self, bucket: str, key: str, sent: Sent, about: EngineObject) -> EngineObject:
        """Write an object. Nothing is written if `read` raises, or the bytes are not what MD5 says (BadDigest)."""
        ...

    def copy(self, bucket: str, found: EngineObject, to_bucket: str, about: EngineObject) -> EngineObject:
        """Copy a version to the key of `about`, with what that says of it."""
        ...

    def say(self, bucket: str, found: EngineObject, about: EngineObject) -> EngineObject:
        """Change tags, and whether everybody may read it; metadata and type by copying it over itself."""
        ...

    def remove(self, bucket: str, key: str, version_id: str = "") -> EngineObject:
        """Remove a version, or the object: the version that went or the mark that was set."""
        ...

    def list(self, bucket: str, prefix: str, *, delimiter: str = "", after: str = "", limit: int = 1000) -> EngineListing:
        """The present objects after a key or prefix."""
        ...

    def versions(self, bucket: str, prefix: str) -> EngineListing:
        """All versions and marks of keys that begin so, the newest of a key first."""
        ...

    def begin_upload(self, bucket: str, about: EngineObject) -> str:
        """Begin an upload in parts; its id."""
        ...

    def put_part(self, bucket: str, key: str, upload_id: str, number: int, sent: Sent) -> str:
        """Send a part; its entity tag."""
        ...

    def complete_upload(self, bucket: str, key: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> None:
        """Make the object of (number, entity tag). Raises ObjectRefused (NoSuchUpload, InvalidPart, InvalidPartOrder, EntityTooSmall)."""
        ...

    def abort_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """Give an upload up."""
        ...


class Accounts(Protocol):
    """Users and keys at the engine, all of whose names begin alike, so that others are left alone."""

    def ensure(self, name: str, label: str, keys: Callable[[], Collection[Key]], *, makes_buckets: bool = False) -> None:
        """There is such an account, not suspended, and it has these keys and no others; `keys` is called after the account was looked at."""
        ...

    def remove(self, name: str) -> None:
        """The account and its keys are gone. One that owns buckets keeps them, and loses its keys."""
        ...

    def names(self) -> Sequence[str]:
        """Accounts that the portal made."""
        ...

    def arn(self, name: str) -> str:
        """How policies name an account."""
        ...

    def figures(self, bucket: str) -> BucketFigures | None:
        """What a bucket holds, of all versions; None if there is no such bucket."""
        ...

    def limit(self, name: str, size_bytes: int | None) -> None:
        """All buckets of an account hold at most so much together."""
        ...


class ObjectEngine(Protocol):
    """Object storage that somebody else runs."""

    @property
    def accounts(self) -> Accounts | None:
        """None where the engine has no interface that makes users: all is done with the portal's own key."""
        ...

    def capability(self) -> Capability:
        """Whether it answers, and if not, why."""
        ...

    def own_key(self) -> Key:
        """The portal's. Raises EngineUnavailable where it cannot be read."""
        ...

    def buckets(self, key: Key | None = None) -> Buckets:
        """As the holder of a key, the portal's own unless given."""
        ...
