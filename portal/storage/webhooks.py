"""Webhooks: addresses of a project that are told what happens in its buckets, each message signed with a secret that both sides know."""

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, delete, func, select, update
from sqlalchemy.orm import Mapped, column_property, mapped_column

from portal.identity.sealed import seal
from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now
from portal.kernel.declare import Created, Effect, operation, update_operation
from portal.kernel.errors import Conflict, InvalidRequest
from portal.kernel.outbound import problem_of
from portal.kernel.quota import Dimension, declare
from portal.kernel.resource import Column, ProjectOwned, ResourceType
from portal.storage.object_models import Bucket

WEBHOOKS = declare(Dimension("webhooks", "Webhooks", "", 20))
SHORTEST_SECRET = 16
MOST_SHOWN = 100
ARN = "arn:atonix:webhook::"
SECRET = f.FieldInfo(
    f.Line(255), "Secret", "What messages are signed with (HMAC-SHA256), 16 characters at least. Leave empty to have one made, which is shown once."
)
NEW_SECRET = f.FieldInfo(
    f.Line(255, r"^.{16,}$", 16, says="must have 16 characters at least"), "Secret", "What messages are signed with from now on."
)


class Webhook(ProjectOwned, Base):
    """An address that is told what happens in buckets."""

    __tablename__ = "webhooks"

    url: Mapped[str] = f.field(
        f.Line(2048),
        label="Address",
        editable=True,
        help="Messages are sent there by POST as JSON. It must be public, unless an administrator allowed it.",
    )
    sealed_secret: Mapped[str] = mapped_column(Text)
    # How many times in a row it took nothing, and when it is tried again.
    failures: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    last_error: Mapped[str] = mapped_column(Text, default="")
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    if TYPE_CHECKING:
        waiting: int
        dead: int

    @property
    def arn(self) -> str:
        """How notifications name it."""
        return f"{ARN}{self.project_id}:{self.id}"


class Notice(Base):
    """A message that waits for being taken by a webhook, or was not taken for so long that it is given up."""

    __tablename__ = "notices"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    bucket_id: Mapped[str] = mapped_column(String(64))
    message: Mapped[dict[str, Any]] = mapped_column(JsonColumn)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    attempts: Mapped[int] = mapped_column(default=0)
    last_error: Mapped[str] = mapped_column(Text, default="")
    dead_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_notices_turn", "webhook_id", "dead_at", "attempts", "id"), {"sqlite_autoincrement": True})


for _name, _is_dead in (("waiting", Notice.dead_at.is_(None)), ("dead", Notice.dead_at.is_not(None))):
    _count = select(func.count()).where(Notice.webhook_id == Webhook.id, _is_dead).correlate_except(Notice).scalar_subquery()
    setattr(Webhook, _name, column_property(_count))


def _check(ctx: Context, webhook: Webhook | None, changes: Mapping[str, Any]) -> None:
    del ctx, webhook
    if "url" in changes and (problem := problem_of(changes["url"])):
        raise InvalidRequest.fields({"url": [problem]})


@operation(Webhook, "create", label="Create", needs="manage", effect=Effect.CREATE)
def webhook_create(
    ctx: Context, *, name: str, url: str, secret: Annotated[str, SECRET] = "", description: str = "", tags: dict[str, str] | None = None
) -> Created:  # fmt: skip
    """Make an address known that notifications of buckets may name. A secret that is made here is shown once."""
    _check(ctx, None, {"url": url})
    if secret and len(secret) < SHORTEST_SECRET:
        raise InvalidRequest.fields({"secret": [f"must have {SHORTEST_SECRET} characters at least."]})
    once = {} if secret else {"secret": secrets.token_urlsafe(32)}
    row = Webhook(name=name, url=url, description=description, tags=tags or {}, sealed_secret=seal(ctx.settings, secret or once["secret"]))
    return Created([row], once)


@operation(Webhook, "set_secret", label="Change the secret", needs="manage", icon="key")
def webhook_set_secret(ctx: Context, webhook: Webhook, *, secret: Annotated[str, NEW_SECRET]) -> None:
    """Sign messages with another secret from now on."""
    webhook.sealed_secret = seal(ctx.settings, secret)


@operation(Webhook, "redeliver", label="Deliver again", needs="manage", icon="redo")
def webhook_redeliver(ctx: Context, webhook: Webhook) -> None:
    """Try again to deliver what was given up, and what waits, at once."""
    again = update(Notice).where(Notice.webhook_id == webhook.id, Notice.dead_at.is_not(None))
    ctx.db.execute(again.values(dead_at=None, attempts=0, created_at=now()).execution_options(synchronize_session=False))
    webhook.failures, webhook.next_try_at = 0, now()


@operation(Webhook, "delete", label="Delete", needs="manage", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True)
def webhook_delete(ctx: Context, webhook: Webhook) -> None:
    """Delete a webhook that no bucket names any more; what waits for it is dropped."""
    rows = select(Bucket.name, Bucket.notifications).where(Bucket.project_id == webhook.project_id, Bucket.deleted_at.is_(None))
    named = sorted(name for name, rules in ctx.db.execute(rows) if any(each["webhook_id"] == webhook.id for each in rules or ()))
    if named:
        raise Conflict(f"{webhook.name} is named by notifications of {', '.join(named[:5])}. Take it out of these first.")
    ctx.db.execute(delete(Notice).where(Notice.webhook_id == webhook.id).execution_options(synchronize_session=False))


def notices_of(ctx: Context, webhook_id: str, *, is_dead: bool) -> Sequence[Notice]:
    """The oldest messages that wait for a webhook, or were given up."""
    state = Notice.dead_at.is_not(None) if is_dead else Notice.dead_at.is_(None)
    return ctx.db.scalars(select(Notice).where(Notice.webhook_id == webhook_id, state).order_by(Notice.id).limit(MOST_SHOWN)).all()


WEBHOOK = ResourceType(
    Webhook, service="storage", name="webhook", collection="webhooks", prefix="whk", label="Webhook", plural="Webhooks", icon="ext",
    summary="Addresses that are told what happens in buckets.",
    operations=[webhook_create, webhook_set_secret, webhook_redeliver, webhook_delete, update_operation(Webhook, needs="manage", before=_check)],
    columns=[Column("name", "Name", sort="name"), Column("url", "Address", css="mono md"), Column("waiting", "Waiting", css="num"),
             Column("dead", "Given up", css="num"), Column("created_at", "Created", sort="created_at", css="lo")],
    quota={WEBHOOKS.name: 1},
    show={"arn": lambda v: v.arn, "waiting": lambda v: v.waiting or 0, "dead": lambda v: v.dead or 0, "last_error": lambda v: v.last_error,
          "delivered_at": lambda v: v.delivered_at.isoformat() if v.delivered_at else None},
    describe=lambda v: (v.url,),
)  # fmt: skip
