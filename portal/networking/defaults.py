"""The network that a project begins with: a VPC with one subnet, a security group and a way out, so that the first instance needs no thought.

It is made with the project; where that was before networks could be made here, a worker brings it later. One that somebody deleted stays away until
the next instance that names no other place.
"""

import logging
from collections.abc import Callable

from sqlalchemy import exists, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import Conflict, PortalError
from portal.kernel.guests import ProjectNetwork
from portal.kernel.lookup import seen
from portal.kernel.rows import hold_along, insert_along
from portal.kernel.tables import PROJECTS
from portal.networking import ipam
from portal.networking.addresses import ANYWHERE
from portal.networking.changes import vpc_queue, why_no_networks
from portal.networking.models import InternetGateway, Route, Subnet, Vpc
from portal.networking.vpc import free_name, furnish

NAME, CIDR, FIRST_SUBNET = "default", "172.31.0.0/16", "172.31.0.0/20"
UNSEEN = "It is not yours to see (networking.vpc.read)."
LATER = "It is not made yet. A worker brings it shortly, unless the quotas of the project leave no room for it."
DELETED = "It was deleted. The next instance that names no other place brings another."

log = logging.getLogger("portal.networks")


def vpc_default(ctx: Context, project_id: str) -> Vpc:
    """The default VPC of a project, made now if there is none, within the transaction of a caller whose job applies it."""
    query = select(Vpc).where(Vpc.project_id == project_id, Vpc.is_default, Vpc.deleted_at.is_(None))
    found = ctx.db.scalars(query).first()
    if found is not None:
        return found
    vpc = Vpc(name=NAME, cidr_block=CIDR, is_default=True, description="The network that instances are in unless another is chosen.")
    if ctx.db.scalar(select(Vpc.id).where(Vpc.project_id == project_id, Vpc.name == NAME, Vpc.deleted_at.is_(None))):
        vpc.name = "default-network"
    vpc.project_id = project_id
    try:
        with ctx.db.begin_nested():
            insert_along(ctx, vpc, project_id)
    except (IntegrityError, Conflict):
        # Somebody else's first instance came first, and brought it.
        found = ctx.db.scalars(query).first()
        if found is None:
            raise
        return found
    furnish(ctx, vpc, prefix="" if vpc.name != NAME else f"{NAME}-")
    subnet = Subnet(name=free_name(ctx, Subnet, NAME, vpc), vpc_id=vpc.id, cidr_block=FIRST_SUBNET, is_default=True, tier="public")
    gateway = InternetGateway(name=free_name(ctx, InternetGateway, NAME, vpc), vpc_id=vpc.id)
    insert_along(ctx, subnet, project_id)
    insert_along(ctx, gateway, project_id)
    vpc.uplink_address = ipam.take_public(ctx, ("networking.vpc", vpc.id))
    ctx.db.add(Route(route_table_id=vpc.main_route_table_id, destination_cidr=ANYWHERE, target_type="internet-gateway", target_id=gateway.id))
    ctx.db.flush()
    return vpc


def default_begin(ctx: Context, project_id: str) -> None:
    """Give a project its default network, within the caller's transaction; where it has no room for one, nothing of it is made."""
    jobs = len(ctx.also_queued)
    try:
        with ctx.db.begin_nested():
            vpc = vpc_default(ctx, project_id)
            hold_along(ctx)
            vpc_queue(ctx, vpc)
    except PortalError as error:
        # The project is there all the same; a worker tries again.
        ctx.made_along.clear()
        del ctx.also_queued[jobs:]
        log.info("no default network for project %s: %s", project_id, error.message)


def default_of(ctx: Context, project_id: str) -> ProjectNetwork:
    """The default network of a project, or why there is none."""
    of_project = select(Vpc.id).where(Vpc.project_id == project_id, Vpc.is_default)
    live = of_project.where(Vpc.deleted_at.is_(None))
    if (found := ctx.db.scalar(live.where(seen(ctx, Vpc)))) is not None:
        return ProjectNetwork(found)
    if ctx.db.scalar(live) is not None:
        return ProjectNetwork(None, UNSEEN)
    return ProjectNetwork(None, why_no_networks(ctx) or (DELETED if ctx.db.scalar(of_project.limit(1)) else LATER))


def projects_without(session: Session) -> list[str]:
    """The projects that never had a default network."""
    had = exists().where(Vpc.project_id == PROJECTS.c.id, Vpc.is_default)
    return list(session.scalars(select(PROJECTS.c.id).where(PROJECTS.c.deleted_at.is_(None), ~had).order_by(PROJECTS.c.id)))


def bring_defaults(ctx: Context, beat: Callable[[], None]) -> None:
    """Give every project that never had a default network one: a transaction each, with a `beat` before it."""
    for project_id in projects_without(ctx.db):
        beat()
        with transaction(ctx.db):
            default_begin(ctx, project_id)
