"""What block storage shows besides the derived pages: the snapshots of a volume, the volumes of an instance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from sqlalchemy import select

from portal.kernel.authz import reach
from portal.kernel.context import Context
from portal.storage.volume_models import Snapshot, Volume
from portal.storage.webhooks import Notice, Webhook, notices_of
from portal.web.bucket_editors import settings_tab
from portal.web.bucket_tabs import connect_tab, keys_tab, usage_tab
from portal.web.derived import Tab
from portal.web.object_listing import objects_tab

LISTED = 200


def _visible(ctx: Context, model: Any, *where: Any) -> Sequence[Any]:
    rtype = ctx.registry.of(model)
    query = select(model).where(*where, model.deleted_at.is_(None), reach(ctx, f"{rtype.key}.read").rows(model)).options(*rtype.eager())
    return ctx.db.scalars(query.order_by(model.created_at.desc(), model.id).limit(LISTED)).all()


def _snapshots(ctx: Context, volume: Volume) -> Mapping[str, Any]:
    return {"snapshots": _visible(ctx, Snapshot, Snapshot.volume_id == volume.id), "tone": ctx.registry.of(Snapshot).lifecycle}


def _of_instance(ctx: Context, instance: Any) -> Mapping[str, Any]:
    return {"volumes": _visible(ctx, Volume, Volume.instance_id == instance.id), "tone": ctx.registry.of(Volume).lifecycle}


@dataclass(frozen=True, slots=True)
class Message:
    """A message to a webhook, as its page shows it."""

    notice: Notice
    event: str
    object: str


def _message(notice: Notice) -> Message:
    record = next(iter(notice.message.get("Records", ())), None)
    if record is None:
        return Message(notice, "Test", str(notice.message.get("Bucket", "")))
    return Message(notice, record["eventName"], f"{record['s3']['bucket']['name']}/{unquote_plus(record['s3']['object']['key'])}")


def _messages(ctx: Context, webhook: Webhook) -> Mapping[str, Any]:
    waiting, dead = ([_message(each) for each in notices_of(ctx, webhook.id, is_dead=is_dead)] for is_dead in (False, True))
    return {"lists": (
        ("Given up", "None. What was not taken for a day, or a dozen times, is kept here for 14 days and can be delivered again.", dead, webhook.dead or 0),
        ("Waiting", "None: everything was taken.", waiting, webhook.waiting or 0),
    )}  # fmt: skip


TABS: dict[str, Sequence[Tab]] = {
    "storage.volume": (Tab("snapshots", "Snapshots", "snapshots.html", _snapshots),),
    "storage.webhook": (Tab("messages", "Messages", "messages.html", _messages),),
    "storage.bucket": (
        Tab("overview", "Objects", "objects.html", objects_tab, script="uploads.js"),
        Tab("settings", "Settings", "settings.html", settings_tab),
        Tab("usage", "Usage", "usage.html", usage_tab),
        Tab("keys", "Access keys", "keys.html", keys_tab),
        Tab("connect", "Connect", "connect.html", connect_tab),
    ),
}
OF_INSTANCE = Tab("storage", "Storage", "storage.html", _of_instance)
