"""What storage shows besides the derived pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from portal.kernel.context import Context
from portal.storage.webhooks import Notice, Webhook, notices_of
from portal.web import volume_pages
from portal.web.bucket_editors import settings_tab
from portal.web.bucket_tabs import connect_tab, keys_tab, usage_tab
from portal.web.derived import Tab
from portal.web.object_listing import objects_tab


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
    **volume_pages.TABS,
    "storage.webhook": (Tab("messages", "Messages", "messages.html", _messages),),
    "storage.bucket": (
        Tab("overview", "Objects", "objects.html", objects_tab, script="uploads.js"),
        Tab("settings", "Settings", "settings.html", settings_tab),
        Tab("usage", "Usage", "usage.html", usage_tab),
        Tab("keys", "Access keys", "keys.html", keys_tab),
        Tab("connect", "Connect", "connect.html", connect_tab),
    ),
}
OF_INSTANCE = volume_pages.OF_INSTANCE
