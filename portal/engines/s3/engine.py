"""The engine as a whole: its key, whether it answers, and clients that sign with one key or another."""

import json
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import botocore.session
from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth
from botocore.config import Config

from portal.engines.object_engine_ports import Key
from portal.engines.ports import Capability, EngineError, EngineUnavailable
from portal.engines.s3.accounts import RgwAccounts
from portal.engines.s3.buckets import S3Buckets

OBJECTS = "objects"
REMEDY = "See S3_ENGINE_ENDPOINT, S3_ENGINE_KEY_FILE and S3_ENGINE_ADMIN, and whether the engine runs."
# The signer in Python: the other one, which botocore prefers where awscrt is installed, wants to read a stream before it is sent.
SIGNER = "portal-s3v4"
AUTH_TYPE_MAPS[SIGNER] = S3SigV4Auth
# So many holders of keys have their clients kept.
KEPT = 256


class S3Engine:
    """Any server that speaks S3; with `users`, the beginning of their ids, also the interface of Ceph RGW for users."""

    def __init__(self, endpoint: str, region: str, key_file: Path, *, users: str) -> None:
        """The key file is JSON with `access_key_id` and `secret_access_key`; it is read when it is first needed."""
        self._endpoint, self._region, self._key_file, self._users = endpoint, region, key_file, users
        self._session = botocore.session.Session()
        # Making a client is not safe in several threads at once; using one is.
        self._lock = Lock()
        self._client = lru_cache(maxsize=KEPT)(self._new_client)

    @property
    def accounts(self) -> RgwAccounts | None:
        """The interface for users, if it has one."""
        return RgwAccounts(self._endpoint, self._region, self.own_key(), self._users) if self._users else None

    def capability(self) -> Capability:
        """Ask for the buckets of the portal's own key, and for a user that there is not."""
        try:
            self.buckets().ping()
            if (accounts := self.accounts) is not None:
                accounts.ping()
        except EngineError as error:
            return Capability(OBJECTS, available=False, detail=self._endpoint, reason=error.message, remedy=REMEDY)
        return Capability(OBJECTS, available=True, detail=self._endpoint)

    def buckets(self, key: Key | None = None) -> S3Buckets:
        """Buckets as the holder of a key sees them."""
        if not self._endpoint:
            raise EngineUnavailable("S3_ENGINE_ENDPOINT does not say where the engine for objects is.")
        return S3Buckets(self._client(key or self.own_key()))

    def own_key(self) -> Key:
        """Read from its file each time, so that it can be replaced."""
        try:
            found = json.loads(self._key_file.read_text())
            return Key(found["access_key_id"], found["secret_access_key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineUnavailable("The portal's own key for the object engine cannot be read (S3_ENGINE_KEY_FILE).") from error

    def _new_client(self, key: Key) -> Any:
        settings = Config(
            s3={"addressing_style": "path", "payload_signing_enabled": False}, signature_version="s3v4", connect_timeout=5, read_timeout=60, max_pool_connections=64,
            retries={"mode": "standard", "max_attempts": 3}, request_checksum_calculation="when_required", response_checksum_validation="when_required",
        )  # fmt: skip
        with self._lock:
            client = self._session.create_client(
                "s3", self._region, endpoint_url=self._endpoint, aws_access_key_id=key.id, aws_secret_access_key=key.secret, config=settings
            )
        client.meta.events.register("choose-signer.s3", lambda **_: SIGNER)
        return client
