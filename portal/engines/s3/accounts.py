"""Users and keys at Ceph RGW, by its interface for administrators. The portal touches only users whose ids begin with its own prefix."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import requests
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from portal.engines.object_engine_ports import BucketFigures, Key, ObjectRefused
from portal.engines.ports import EngineUnavailable
from portal.engines.s3.calls import SILENT

OK, ABSENT, FAULT = 200, 404, 500
TIMEOUT_S = (5, 30)
PAGE = 1000
# How RGW says it: 0 is as many as one likes, a negative number none at all.
ANY_NUMBER, NONE = "0", "-1"
UNLIMITED_KIB = "-1"


class RgwAccounts:
    """The users of one gateway."""

    def __init__(self, endpoint: str, region: str, key: Key, prefix: str) -> None:
        """The key's user needs the capabilities `users=*` and `buckets=*`."""
        self._prefix = f"{prefix}-"
        self._endpoint, self._region, self._credentials = endpoint, region, Credentials(key.id, key.secret)

    def ping(self) -> None:
        """Raise what is wrong: the key may not ask for users, or nobody answers."""
        self._find("nobody")

    def arn(self, name: str) -> str:
        """As bucket policies name a user."""
        return f"arn:aws:iam:::user/{self._prefix}{name}"

    def ensure(self, name: str, label: str, keys: Callable[[], Collection[Key]], *, makes_buckets: bool = False) -> None:
        """Make the user or mend it, give it keys that it lacks and take those that it should not have.

        Keys are asked for after the user was looked at: one that is made meanwhile is not taken for one that has ended.
        """
        uid, number = self._prefix + name, ANY_NUMBER if makes_buckets else NONE
        found = self._find(name)
        if found is None:
            made = self._ask("PUT", "user", uid=uid, **{"display-name": label, "max-buckets": number, "generate-key": "False"})
            found = {"keys": [], **made}
        elif found.get("suspended") or found.get("max_buckets") != int(number):
            self._ask("POST", "user", uid=uid, suspended="False", **{"max-buckets": number})
        present = {each["access_key"]: each["secret_key"] for each in found["keys"]}
        wanted = {key.id: key.secret for key in keys()}
        for key_id in present.keys() - wanted.keys():
            self._remove_key(uid, key_id)
        for key_id, secret in wanted.items():
            if present.get(key_id) != secret:
                self._ask("PUT", "user", key="", uid=uid, **{"access-key": key_id, "secret-key": secret, "generate-key": "False"})

    def remove(self, name: str) -> None:
        """Remove the user; one that has buckets or objects is left without keys and suspended."""
        uid, found = self._prefix + name, self._find(name)
        if found is None:
            return
        for each in found["keys"]:
            self._remove_key(uid, each["access_key"])
        try:
            self._ask("DELETE", "user", uid=uid)
        except ObjectRefused as error:
            if error.code == "NoSuchUser":
                return
            self._ask("POST", "user", uid=uid, suspended="True")

    def names(self) -> Sequence[str]:
        """All users of the portal's."""
        found: list[str] = []
        marker = ""
        while True:
            page = self._ask("GET", "user", list="", marker=marker, **{"max-entries": str(PAGE)})
            found += [uid.removeprefix(self._prefix) for uid in page["keys"] if uid.startswith(self._prefix)]
            marker = page.get("marker", "")
            if not page.get("truncated") or not marker:
                return found

    def figures(self, bucket: str) -> BucketFigures | None:
        """What RGW counts."""
        try:
            usage = self._ask("GET", "bucket", bucket=bucket, stats="True").get("usage", {})
        except ObjectRefused as error:
            if error.code in {"NoSuchBucket", "NoSuchKey"}:
                return None
            raise
        return BucketFigures(sum(int(part.get("size", 0)) for part in usage.values()), int(usage.get("rgw.main", {}).get("num_objects", 0)))

    def limit(self, name: str, size_bytes: int | None) -> None:
        """A quota of the user, which counts all of its buckets; RGW looks at it in KiB, and lets a little more through under load."""
        kib = UNLIMITED_KIB if size_bytes is None else str(size_bytes >> 10)
        self._ask("PUT", "user", quota="", uid=self._prefix + name, enabled="True" if size_bytes is not None else "False",
                  **{"quota-type": "user", "max-size-kb": kib, "max-objects": "-1"})  # fmt: skip

    def _find(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._ask("GET", "user", uid=self._prefix + name)
        except ObjectRefused as error:
            if error.code == "NoSuchUser":
                return None
            raise
        return found

    def _remove_key(self, uid: str, key_id: str) -> None:
        try:
            self._ask("DELETE", "user", key="", uid=uid, **{"access-key": key_id})
        except ObjectRefused as error:
            # So it says of a key that is gone.
            if error.code != "InvalidAccessKeyId":
                raise

    def _ask(self, method: str, what: str, **query: str) -> Any:
        request = AWSRequest(method=method, url=f"{self._endpoint}/admin/{what}", params={"format": "json", **query}, data=b"")
        S3SigV4Auth(self._credentials, "s3", self._region).add_auth(request)
        prepared = request.prepare()
        try:
            answer = requests.request(method, prepared.url, headers=dict(prepared.headers), data=b"", timeout=TIMEOUT_S, allow_redirects=False)
        except requests.RequestException as error:
            raise EngineUnavailable(SILENT) from error
        if answer.status_code >= FAULT:
            raise EngineUnavailable(SILENT)
        try:
            said = json.loads(answer.content) if answer.content.strip() else {}
        except ValueError:
            said = {}
        if answer.status_code != OK:
            code = str(said.get("Code", "")) if isinstance(said, dict) else ""
            raise ObjectRefused(code or str(answer.status_code), f"The engine for objects refused to change its users: {code or answer.status_code}.")
        return said
