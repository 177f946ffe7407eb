"""What a bucket's page shows besides objects and settings: what it held over time, uploads that have not ended, access keys, and how clients connect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import request
from sqlalchemy import func, select

from portal.http.s3_address import s3_endpoint
from portal.identity.s3_keys import s3_keys_of
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, Unavailable
from portal.storage.access import LIST, LIST_UPLOADS, WRITE, decide_object
from portal.storage.listing import Listing, uploads_listed
from portal.storage.metrics import BucketHour, hours_of
from portal.storage.object_models import Bucket, ObjectPart, ObjectUpload
from portal.web.compute_pages import Chart, chart_of
from portal.web.object_listing import facts_of

PERIODS: Mapping[str, str] = {"24": "1 day", "168": "1 week", "720": "30 days", "2208": "92 days"}
MIB = 1 << 20
LISTED = 50


@dataclass(frozen=True, slots=True)
class _Hour:
    at: datetime
    row: BucketHour


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload in parts that has not ended, and what has arrived of it."""

    upload: ObjectUpload
    parts: int
    size_bytes: int
    may_end: bool


def usage_tab(ctx: Context, bucket: Bucket) -> Mapping[str, Any]:
    """What the tab of usage shows."""
    period = request.args.get("hours", "168")
    if period not in PERIODS:
        raise InvalidRequest.fields({"hours": [f"must be one of {', '.join(PERIODS)}."]})
    hours = [_Hour(row.hour, row) for row in hours_of(ctx, bucket.id, int(period))]
    return {"period": period, "periods": PERIODS, "hours": hours, "charts": _charts(hours) if hours else [], "uploads": _uploads(ctx, bucket)}


def _charts(hours: Sequence[_Hour]) -> list[Chart]:
    def numbers(name: str, unit: int = 1) -> list[float]:
        return [getattr(each.row, name) / unit for each in hours]

    return [
        chart_of("Size", "MiB", [("all versions", "", numbers("size_bytes", MIB))], points=hours, top=_top(numbers("size_bytes", MIB))),
        chart_of("Objects", "", [("objects", "", numbers("objects"))], points=hours, top=_top(numbers("objects"))),
        chart_of("Traffic", "MiB an hour", [("out", "", numbers("bytes_out", MIB)), ("in", "c2", numbers("bytes_in", MIB))], points=hours,
                 top=_top(numbers("bytes_out", MIB) + numbers("bytes_in", MIB))),
        chart_of("Requests", "an hour", [("requests", "", numbers("requests"))], points=hours, top=_top(numbers("requests"))),
    ]  # fmt: skip


def _top(numbers: Sequence[float]) -> float:
    """The end of an axis on which nothing is cut off, a round number."""
    top = 1.0
    while top < max(numbers):
        top *= 2 if str(top)[0] in "15" else 2.5
    return top


def _uploads(ctx: Context, bucket: Bucket) -> list[Unfinished]:
    if bucket.deleted_at is not None:
        return []
    facts = facts_of(ctx, bucket)
    if not decide_object(ctx, facts, LIST, "", asked=LIST_UPLOADS).allowed:
        return []
    rows = uploads_listed(ctx, bucket.id, Listing(limit=LISTED)).rows
    arrived = select(ObjectPart.upload_id, func.count(), func.sum(ObjectPart.size_bytes)).where(ObjectPart.upload_id.in_([row.id for row in rows]))
    sums = {upload_id: (count, int(size)) for upload_id, count, size in ctx.db.execute(arrived.group_by(ObjectPart.upload_id))}
    return [
        Unfinished(row, *sums.get(row.id, (0, 0)), decide_object(ctx, facts, WRITE, row.key, owner_id=row.owner_id, tags=row.tags).allowed)
        for row in rows
    ]


def keys_tab(ctx: Context, bucket: Bucket) -> Mapping[str, Any]:
    """The caller's own keys: they open every bucket that their user may use."""
    del bucket
    return {"keys": s3_keys_of(ctx)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a client is told of this installation; the secret is for its user to fill in."""

    client: str
    text: str


def connect_tab(ctx: Context, bucket: Bucket) -> Mapping[str, Any]:
    """Commands that are ready but for the secret."""
    try:
        endpoint = s3_endpoint()
    except Unavailable as error:
        return {"endpoint": "", "why_not": error.message, "recipes": [], "domain": ""}
    own = next((key.id for key in s3_keys_of(ctx) if key.is_active), "")
    return {"endpoint": endpoint, "recipes": recipes(endpoint, bucket.name, own or "YOUR_ACCESS_KEY"), "own": own, "domain": ctx.settings.s3_domain}


def recipes(endpoint: str, bucket: str, key_id: str) -> list[Recipe]:
    """One for each client."""
    scheme, _, host = endpoint.partition("://")
    plain = "" if scheme == "https" else " --no-ssl"
    export = f"export AWS_ACCESS_KEY_ID={key_id}\nread -rs AWS_SECRET_ACCESS_KEY && export AWS_SECRET_ACCESS_KEY"
    return [
        Recipe("aws-cli", f"{export}\nexport AWS_DEFAULT_REGION=us-east-1\naws --endpoint-url {endpoint} s3 sync ./folder s3://{bucket}/folder"),
        Recipe("boto3", "\n".join((
            "import boto3", "from botocore.config import Config", "",
            f"# {key_id} and its secret are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            f's3 = boto3.client("s3", endpoint_url="{endpoint}", region_name="us-east-1",',
            '                  config=Config(s3={"addressing_style": "path"}))', f's3.upload_file("file.txt", "{bucket}", "file.txt")',
        ))),
        Recipe("rclone", "\n".join((
            f"{export}", "rclone sync ./folder \\", f'  ":s3,provider=Other,env_auth=true,endpoint=\'{endpoint}\':{bucket}/folder"',
        ))),
        Recipe("s3cmd", f"{export}\ns3cmd --host={host} --host-bucket={host}{plain} \\\n  sync ./folder/ s3://{bucket}/folder/"),
        Recipe("restic", f"{export}\nrestic -r s3:{endpoint}/{bucket} init\nrestic -r s3:{endpoint}/{bucket} backup ./folder"),
    ]  # fmt: skip
