"""Addresses that let whoever has them do one thing with one object for a while: signed (V4) with an access key of the caller's own."""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import quote, urlencode, urlsplit

from sqlalchemy import select

from portal.engines.object_engine_ports import Key
from portal.identity.models import S3AccessKey
from portal.identity.sealed import unseal
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import Conflict, InvalidRequest
from portal.storage.access import DELETE, READ, WRITE, check_key, check_new_key
from portal.storage.engine_steps import on_engine
from portal.storage.facts import BucketFacts
from portal.storage.object_service import ObjectService

ACTIONS = {"GET": READ, "HEAD": READ, "PUT": WRITE, "DELETE": DELETE}
LONGEST_S = 7 * 86_400
REGION = "us-east-1"


def presign(
    ctx: Context, objects: ObjectService, endpoint: str, bucket: BucketFacts, key: str, *, method: str, expires_in: int, signer: Key | None = None,
    saved_as: str = "",
) -> tuple[str, datetime]:  # fmt: skip
    """(address, when it ends). It is worth what the caller's key is worth when it is used. Raises Forbidden, and Conflict without an access key.

    `signer` is a key of the portal's at an external engine: then the address is good until it ends. Browsers save what they read under `saved_as`.
    """
    (check_new_key if method == "PUT" else check_key)(key)
    if method not in ACTIONS or not 1 <= expires_in <= LONGEST_S:
        raise InvalidRequest.fields({"method": [f"must be one of {', '.join(ACTIONS)}."], "expires_in": [f"must be 1 to {LONGEST_S:,} seconds."]})
    objects.authorize(ctx, bucket, key, ACTIONS[method])
    region = ctx.settings.s3_engine_region if on_engine(ctx.settings) else REGION
    if signer is not None:
        return _signed(endpoint, _Asked(method, _path(bucket, key), expires_in, saved_as), _Signer(signer.id, signer.secret, region))
    own = select(S3AccessKey).where(S3AccessKey.user_id == ctx.principal.user_id, S3AccessKey.is_active)
    access_key = ctx.db.scalars(own.order_by(S3AccessKey.created_at.desc(), S3AccessKey.id).limit(1)).first()
    secret = unseal(ctx.settings, access_key.sealed_secret) if access_key is not None else None
    if access_key is None or secret is None or ctx.principal.is_restricted:
        raise Conflict("An address is signed with an access key of your own, for all that you may do: make one first, or use a token without scopes.")
    return _signed(endpoint, _Asked(method, _path(bucket, key), expires_in, saved_as), _Signer(access_key.id, secret, region))


@dataclass(frozen=True, slots=True)
class _Signer:
    key_id: str
    secret: str
    region: str


@dataclass(frozen=True, slots=True)
class _Asked:
    method: str
    path: str
    expires_in: int
    saved_as: str


def _path(bucket: BucketFacts, key: str) -> str:
    return f"/{bucket.name}/{quote(key, safe='/-_.~')}"


def _signed(endpoint: str, asked: _Asked, signer: _Signer) -> tuple[str, datetime]:
    moment, key_id, secret = now(), signer.key_id, signer.secret
    stamp = moment.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{signer.region}/s3/aws4_request"
    query = urlencode({
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": f"{key_id}/{scope}", "X-Amz-Date": stamp, "X-Amz-Expires": str(asked.expires_in),
        "X-Amz-SignedHeaders": "host",
        **({"response-content-disposition": f"attachment; filename*=UTF-8''{quote(asked.saved_as, safe='')}"} if asked.saved_as else {}),
    }, quote_via=quote, safe="-_.~")  # fmt: skip
    text = f"{asked.method}\n{asked.path}\n{query}\nhost:{urlsplit(endpoint).netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    signing = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(text.encode()).hexdigest()}"):
        signing = hmac.digest(signing, part.encode(), "sha256")
    return f"{endpoint}{asked.path}?{query}&X-Amz-Signature={signing.hex()}", moment + timedelta(seconds=asked.expires_in)
