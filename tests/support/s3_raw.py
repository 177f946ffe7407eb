"""Signed requests to the gateway as a test writes them, and answers as they came: status, headers, elements of the XML."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode
from xml.etree.ElementTree import Element, fromstring

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from portal.identity.models import User
from tests.support.s3 import client, fetch

NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def xml(self) -> Element:
        """The document that came."""
        return fromstring(self.body)  # noqa: S314 - of the gateway

    @property
    def root(self) -> str:
        """The name of its root, which is in the namespace of S3 unless it tells of an error."""
        tag = self.xml.tag
        assert tag == "Error" or tag.startswith(NAMESPACE), tag
        return tag.removeprefix(NAMESPACE)

    def texts(self, path: str) -> list[str]:
        """The texts of all elements on a path below the root, such as `Contents/Key`."""
        return [each.text or "" for each in self.xml.findall("/".join(f"{NAMESPACE}{name}" for name in path.split("/")))]

    def text(self, path: str) -> str:
        """The only one of them."""
        (found,) = self.texts(path)
        return found

    @property
    def code(self) -> str:
        """What an error is called; empty where there is none."""
        return self.xml.findtext("Code") or "" if b"<Error>" in self.body else ""


class Raw:
    """Whose requests they are."""

    def __init__(self, url: str, owner: User, key_id: str, secret: str) -> None:
        self.owner = owner
        self._url, self._key_id, self._secret = url, key_id, secret

    def __call__(
        self, method: str, path: str, query: str | Mapping[str, str] = "", body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request; the path is not encoded yet, the query is or is a mapping."""
        told = query if isinstance(query, str) else urlencode(query)
        address = self._url + quote(path, safe="/-_.~") + (f"?{told}" if told else "")
        signed = AWSRequest(method, address, data=body, headers={**(headers or {})})
        S3SigV4Auth(Credentials(self._key_id, self._secret), "s3", "us-east-1").add_auth(signed)
        return Reply(*fetch(address, method, body, dict(signed.headers)))

    def nobody(self, method: str, path: str, query: str = "", body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        """The same without a signature."""
        address = self._url + quote(path, safe="/-_.~") + (f"?{query}" if query else "")
        return Reply(*fetch(address, method, body, dict(headers or {})))

    def boto(self) -> Any:
        """boto3 with the same key."""
        return client(self._url, self._key_id, self._secret)
