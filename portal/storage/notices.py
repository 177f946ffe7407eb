"""Sending of what webhooks are to be told: at least once, again and again for a day; then it is given up, which whoever looks at the webhook sees."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, exists, select, update

from portal.engines.ports import EngineError
from portal.identity.sealed import unseal
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.outbound import Reach, post, signed_headers
from portal.storage.webhooks import Notice, Webhook

BATCH = 100
AT_ONCE = 8
MOST_TRIES = 12
LONGEST = timedelta(days=1)
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 900.0
DEAD_KEPT = timedelta(days=14)

log = logging.getLogger("portal.storage")


@dataclass(frozen=True, slots=True)
class _Turn:
    """What a webhook is sent next."""

    webhook_id: str
    url: str
    secret: str
    failures: int
    notices: Sequence[int]
    body: bytes


def notices_send(ctx: Context, *, seconds: float = 30.0) -> int:
    """Send what waits for webhooks that may be tried; several of them at the same time, so that a slow one holds up nobody for long."""
    sent, end = 0, time.monotonic() + seconds
    reach = Reach.of(ctx.settings.webhook_hosts_allowed, "WEBHOOK_HOSTS_ALLOWED")
    with ThreadPoolExecutor(AT_ONCE) as senders:
        while time.monotonic() < end and (turns := _turns(ctx)):
            for turn, problem in zip(turns, senders.map(lambda turn: _send(turn, reach), turns), strict=True):
                if problem:
                    _failed(ctx, turn, problem)
                else:
                    _taken(ctx, turn)
                    sent += len(turn.notices)
    _clear(ctx)
    return sent


def _turns(ctx: Context) -> list[_Turn]:
    """The next message for each webhook that may be tried now."""
    waits = exists().where(Notice.webhook_id == Webhook.id, Notice.dead_at.is_(None))
    due = select(Webhook.id, Webhook.url, Webhook.sealed_secret, Webhook.failures).where(
        Webhook.deleted_at.is_(None), Webhook.next_try_at <= now(), waits
    )
    found = [_turn(ctx, *row) for row in ctx.db.execute(due.order_by(Webhook.next_try_at, Webhook.id).limit(AT_ONCE)).all()]
    ctx.db.rollback()
    return found


def _turn(ctx: Context, webhook_id: str, url: str, sealed: str, failures: int) -> _Turn:
    # What was refused goes alone and after all others, so that it holds up nobody else.
    mine = select(Notice.id, Notice.attempts, Notice.message).where(Notice.webhook_id == webhook_id, Notice.dead_at.is_(None))
    rows = ctx.db.execute(mine.order_by(Notice.attempts, Notice.id).limit(BATCH)).all()
    together = [rows[0]]
    if not rows[0].attempts and "Records" in rows[0].message:
        together = [row for row in rows if not row.attempts and "Records" in row.message]
        message: Mapping[str, object] = {"Records": [record for row in together for record in row.message["Records"]]}
    else:
        message = rows[0].message
    return _Turn(webhook_id, url, unseal(ctx.settings, sealed) or "", failures, [row.id for row in together], json.dumps(message).encode())


def _send(turn: _Turn, reach: Reach) -> str:
    """What went wrong; empty where it was taken."""
    if not turn.secret:
        return "The secret cannot be read, since SECRET_KEY is another one than when it was set. Set it again."
    try:
        post(turn.url, turn.body, signed_headers(turn.secret, turn.body), reach)
    except EngineError as error:
        return error.message
    except Exception as error:
        log.exception("webhook %s", turn.webhook_id)
        return f"Something unexpected went wrong in the portal itself ({type(error).__name__})."
    return ""


def _taken(ctx: Context, turn: _Turn) -> None:
    with transaction(ctx.db):
        _update(ctx, turn, failures=0, last_error="", delivered_at=now(), next_try_at=now())
        ctx.db.execute(delete(Notice).where(Notice.id.in_(turn.notices)).execution_options(synchronize_session=False))


def _failed(ctx: Context, turn: _Turn, problem: str) -> None:
    wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(turn.failures, 16))
    log.warning("webhook %s: %s; trying again in %.0f s", turn.webhook_id, problem, wait_s)
    with transaction(ctx.db):
        _update(ctx, turn, failures=turn.failures + 1, last_error=problem[:2000], next_try_at=now() + timedelta(seconds=wait_s))
        mine = update(Notice).where(Notice.webhook_id == turn.webhook_id, Notice.dead_at.is_(None)).execution_options(synchronize_session=False)
        tried = mine.where(Notice.id.in_(turn.notices))
        ctx.db.execute(tried.values(attempts=Notice.attempts + 1, last_error=problem[:2000]))
        over = (Notice.attempts >= MOST_TRIES) | (Notice.created_at < now() - LONGEST)
        ctx.db.execute(mine.where(over).values(dead_at=now(), last_error=problem[:2000]))


def _update(ctx: Context, turn: _Turn, **values: object) -> None:
    ctx.db.execute(update(Webhook).where(Webhook.id == turn.webhook_id).values(**values).execution_options(synchronize_session=False))


def _clear(ctx: Context) -> None:
    """Forget what was given up long ago, and what waits for a webhook that is gone."""
    gone = select(Webhook.id).where(Webhook.deleted_at.is_not(None))
    over = delete(Notice).where((Notice.dead_at < now() - DEAD_KEPT) | Notice.webhook_id.in_(gone))
    with transaction(ctx.db):
        ctx.db.execute(over.execution_options(synchronize_session=False))
