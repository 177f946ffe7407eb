"""What the host counts: how many connections each rule has let through, and what bounds have refused.

The worker reads it now and then; pages and the API say when it did.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from portal.engines.ports import EngineError
from portal.kernel.db import insert_of, now, transaction
from portal.kernel.runner import TaskRun
from portal.networking.bounds import bounds_told
from portal.networking.models import RuleHits, Vpc

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hits:
    """Rule → connections that it let through since the host first had it, and when that was read; without a reading nothing is known."""

    connections: Mapping[str, int] = field(default_factory=dict)
    read_at: datetime | None = None


def hits_of(session: Session, vpc_id: str) -> Hits:
    """The last reading of a VPC."""
    found = session.get(RuleHits, vpc_id)
    return Hits(found.connections, found.read_at) if found is not None else Hits()


def read_rule_hits(task: TaskRun) -> None:
    """Read what every VPC has counted, and forget those that are gone."""
    engine, session = task.engines.network, task.ctx.db
    if engine is None or not engine.capability().available:
        return
    live = select(Vpc.id).where(Vpc.deleted_at.is_(None), Vpc.applied_revision > 0)
    ids = session.scalars(live.order_by(Vpc.id)).all()
    session.rollback()
    for vpc_id in ids:
        try:
            counted, refused = dict(engine.rule_hits(vpc_id)), engine.refusals(vpc_id)
        except EngineError as error:
            # The last reading stays, and its age tells.
            log.warning("rules of %s could not be counted: %s", vpc_id, error.message)
            continue
        said = {"read_at": now(), "connections": counted, "refused": {bound.value: count for bound, count in refused.packets.items()}}
        with transaction(session):
            session.execute(insert_of(session)(RuleHits).values(vpc_id=vpc_id, **said).on_conflict_do_update(index_elements=["vpc_id"], set_=said))
        bounds_told(task.ctx, vpc_id, refused)
    with transaction(session):
        session.execute(delete(RuleHits).where(RuleHits.vpc_id.not_in(live)).execution_options(synchronize_session=False))
