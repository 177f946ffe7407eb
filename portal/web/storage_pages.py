"""What block storage shows besides the derived pages: the snapshots of a volume, the volumes of an instance."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from portal.kernel.authz import reach
from portal.kernel.context import Context
from portal.storage.volume_models import Snapshot, Volume
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


TABS: dict[str, Sequence[Tab]] = {
    "storage.volume": (Tab("snapshots", "Snapshots", "snapshots.html", _snapshots),),
    "storage.bucket": (
        Tab("overview", "Objects", "objects.html", objects_tab, script="uploads.js"),
        Tab("settings", "Settings", "settings.html", settings_tab),
        Tab("usage", "Usage", "usage.html", usage_tab),
        Tab("keys", "Access keys", "keys.html", keys_tab),
        Tab("connect", "Connect", "connect.html", connect_tab),
    ),
}
OF_INSTANCE = Tab("storage", "Storage", "storage.html", _of_instance)
