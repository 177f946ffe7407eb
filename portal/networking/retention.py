"""Networks that have been gone for long are forgotten, as instances are; the audit log keeps its entries."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, select
from sqlalchemy.orm import Session, aliased

from portal.kernel.db import Base, transaction
from portal.kernel.jobs import ACTIVE, Job
from portal.kernel.tables import PROJECTS
from portal.kernel.tags import ResourceTag
from portal.networking.models import (
    ElasticIp,
    FlowRecord,
    InternetGateway,
    NatGateway,
    NetworkInterface,
    RouteTable,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcPeering,
)

# What refers to others is forgotten before these.
FORGOTTEN: tuple[type[Any], ...] = (
    VpcPeering, NatGateway, ElasticIp, NetworkInterface, InternetGateway, Subnet, RouteTable, SecurityGroup, Vpc,
)  # fmt: skip
# Rows that go in one transaction: others want to write meanwhile.
BATCH = 500


def purge_networks(session: Session, before: datetime) -> None:
    """Forget whatever of networks ended before a moment, has no job at work and is named by nothing that is still kept."""
    for model in FORGOTTEN:
        over = select(model.id).where(model.deleted_at < before, *_unused(model)).order_by(model.id).limit(BATCH)
        while True:
            with transaction(session):
                gone = session.scalars(over).all()
                session.execute(delete(model).where(model.id.in_(gone)).execution_options(synchronize_session=False))
                session.execute(delete(ResourceTag).where(ResourceTag.resource_id.in_(gone)).execution_options(synchronize_session=False))
                if model is Vpc:
                    session.execute(delete(FlowRecord).where(FlowRecord.vpc_id.in_(gone)).execution_options(synchronize_session=False))
            if len(gone) < BATCH:
                break


def _unused(model: type[Any]) -> list[ColumnElement[bool]]:
    table = Base.metadata.tables[model.__tablename__]
    referring = [key.parent for other in Base.metadata.sorted_tables for key in other.foreign_keys if key.column.table is table]
    found = [~exists().where(column == model.id) for column in referring]
    found.append(~exists().where(Job.resource_id == model.id, Job.state.in_(ACTIVE)))
    if model is VpcPeering:
        # The host is still to be told.
        found.append(VpcPeering.is_linked.is_(False))
    if model is Vpc:
        # That a project had its default network is remembered by the last one as long as the project is there: it is not brought again.
        later = aliased(Vpc)
        is_open = exists().where(PROJECTS.c.id == Vpc.project_id, PROJECTS.c.deleted_at.is_(None))
        is_last = ~exists().where(later.project_id == Vpc.project_id, later.is_default, later.created_at > Vpc.created_at)
        found.append(~(Vpc.is_default & is_open & is_last))
    return found
