"""Refusals of object storage that clients tell apart."""

from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, MethodNotAllowed, NotFound, PortalError


class NoSuchBucket(NotFound):
    """There is no bucket of this name."""


class NoSuchKey(NotFound):
    """There is no object under the key, or it was deleted; `details` may name the mark of its deletion."""


class NoSuchVersion(NotFound):
    """The object has no such version."""


class NoSuchUpload(NotFound):
    """There is no such multipart upload, or it has ended."""


class ObjectChanged(Conflict):
    """An object was written over or deleted between the look at it and the use of its bytes."""


class ObjectDamaged(PortalError):
    """What is stored of an object is not what was written; those who can help have been told."""


class IsMarker(MethodNotAllowed):
    """The version is the mark of a deletion: there is nothing to be read."""


class BucketTaken(Conflict):
    """Another bucket has the name; `details` say whether it is in the same project."""


class BucketNotEmpty(Conflict):
    """There are objects in a bucket that is to be deleted."""


class BucketLocked(Conflict):
    """What is asked for cannot be because of the bucket's object lock."""


class NoObjectLock(InvalidRequest):
    """Something is said of retention or a legal hold in a bucket that has no object lock."""


class ObjectLocked(Forbidden):
    """A version is kept from deletion, or its retention from being weakened."""


class AclUnsupported(InvalidRequest):
    """A list of access is set where such lists do not count."""


class AclLeft(InvalidRequest):
    """A bucket's list of access lets others in, and is not to count any more; or it would from the beginning."""


class AclBlocked(InvalidRequest):
    """A new bucket is to let everybody in, and to block that."""


class KeyTooLong(InvalidRequest):
    """A key has more than 1,024 bytes."""


class InvalidKey(InvalidRequest):
    """A key has characters that no database keeps."""


class InvalidPart(InvalidRequest):
    """A part that is named at the end of an upload is not there, or is another one."""


class InvalidPartOrder(InvalidRequest):
    """Parts are not named in ascending order."""


class PartTooSmall(InvalidRequest):
    """A part other than the last has less than 5 MiB."""


class CustomerKeyMissing(InvalidRequest):
    """An object is encrypted with a key that the client has to send along, and did not."""


class CustomerKeyNotWanted(InvalidRequest):
    """A key was sent along for an object that is not encrypted with one of the client's."""


class CustomerKeyWrong(Forbidden):
    """The key that was sent along is not the one that the object was encrypted with."""


class NoSuchEncryptionKey(InvalidRequest):
    """There is no key of this name or id in the project of the bucket."""
