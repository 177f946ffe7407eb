"""Lists of access in headers: a word, or grants one by one."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from portal.s3.errors import S3Error
from portal.s3.requests import S3Request
from portal.storage.grants import ALL, CANNED, LOGGER, OWNER_CONTROLS, OWNER_READS, PERMISSIONS, SIGNED_IN, Grant
from portal.storage.object_models import CUSTOM

GROUPS: Mapping[str, str] = {
    ALL: "http://acs.amazonaws.com/groups/global/AllUsers", SIGNED_IN: "http://acs.amazonaws.com/groups/global/AuthenticatedUsers",
    LOGGER: "http://acs.amazonaws.com/groups/s3/LogDelivery",
}  # fmt: skip
BY_URI = {uri: name for name, uri in GROUPS.items()}
HEADERS = {f"x-amz-grant-{permission.lower().replace('_', '-')}": permission for permission in PERMISSIONS}
GRANTEE = re.compile(r'\s*(id|uri|emailAddress)\s*=\s*"?([^",]*)"?\s*', re.IGNORECASE)
FOR_LOGS: tuple[Grant, ...] = ((LOGGER, "WRITE"), (LOGGER, "READ_ACP"))


@dataclass(frozen=True, slots=True)
class Asked:
    """The list that a request comes to: a word, or grants in its place."""

    acl: str = "private"
    grants: tuple[Grant, ...] | None = None


def asked_in_headers(request: S3Request, *, of_bucket: bool) -> Asked | None:
    """The list that the headers of a request ask for; None where they ask for none. Raises InvalidArgument, InvalidRequest or NotImplemented."""
    canned = request.header("x-amz-acl")
    granted = {permission: value for name, permission in HEADERS.items() if (value := request.header(name))}
    if canned and granted:
        raise S3Error("InvalidRequest", "Specifying both Canned ACLs and Header Grants is not allowed")
    if granted:
        return Asked(CUSTOM, tuple((grantee_of(kind, value), permission) for permission, text in granted.items() for kind, value in _named(text)))
    if not canned:
        return None
    if of_bucket and canned == "log-delivery-write":
        return Asked(CUSTOM, FOR_LOGS)
    if canned not in {*CANNED, *(() if of_bucket else (OWNER_READS, OWNER_CONTROLS))}:
        raise S3Error("InvalidArgument", ArgumentName="x-amz-acl", ArgumentValue=canned[:64])
    return Asked(canned)


def _named(text: str) -> Iterator[tuple[str, str]]:
    for each in text.split(","):
        found = GRANTEE.fullmatch(each)
        if found is None:
            raise S3Error("InvalidArgument", 'A grantee is written as id="..." or uri="...".', ArgumentValue=each[:128])
        yield found[1].lower(), found[2]


def grantee_of(kind: str, value: str) -> str:
    """A grantee as it is kept, by what names it (`id`, `uri`). Raises InvalidArgument, or NotImplemented for an e-mail address."""
    if kind == "emailaddress":
        raise S3Error("NotImplemented", "Nobody is found here by an e-mail address: name the id of the user.")
    if kind == "uri":
        if value not in BY_URI:
            raise S3Error("InvalidArgument", "Invalid group uri", ArgumentName="uri", ArgumentValue=value[:128])
        return BY_URI[value]
    if not value or value in GROUPS:
        raise S3Error("InvalidArgument", "Invalid id", ArgumentName="CanonicalUser/ID", ArgumentValue=value[:128])
    return value
