"""What encryption keys show besides the derived pages: what they encrypt, their versions, and who used them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from portal.kernel.context import Context
from portal.security.encryption_keys import READ_USAGE, uses_of, versions_of
from portal.security.key_models import EncryptionKey, KeyUsage
from portal.web.derived import Tab, base_of

LISTED = 200


@dataclass(frozen=True, slots=True)
class User:
    """A resource that is encrypted with a key, and where it is shown."""

    name: str
    label: str
    id: str
    url: str


def _resources(ctx: Context, key: EncryptionKey) -> Mapping[str, Any]:
    types = {rtype.key: rtype for rtype in ctx.registry}
    return {"users": [User(each.name, each.label, each.id, f"{base_of(types[each.type_key])}/{each.id}") for each in uses_of(ctx, key)]}


def _versions(ctx: Context, key: EncryptionKey) -> Mapping[str, Any]:
    return {"versions": versions_of(ctx, key)}


def _usage(ctx: Context, key: EncryptionKey) -> Mapping[str, Any]:
    query = select(KeyUsage).where(KeyUsage.key_id == key.id)
    return {"uses": ctx.db.scalars(query.order_by(KeyUsage.hour.desc(), KeyUsage.last_at.desc()).limit(LISTED)).all()}


TABS: dict[str, Sequence[Tab]] = {
    "security.key": (
        Tab("resources", "Encrypts", "resources.html", _resources),
        Tab("versions", "Versions", "versions.html", _versions),
        Tab("usage", "Usage", "usage.html", _usage, needs=READ_USAGE),
    )
}
