"""Bounds of connections: what they have refused, and word of whose guest was concerned, at most once an hour for each address."""

from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.engines.network_ports import LIMITS, Bound, Refusals
from portal.kernel import audit, events
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.events import Event
from portal.networking.models import RuleHits, Vpc

REACHED = "networking.vpc.bound_reached"
QUIET = timedelta(hours=1)


def refused_packets(session: Session) -> Mapping[str, int]:
    """Bound → packets that it has refused in all VPCs, as last read."""
    found = {bound.value: 0 for bound in Bound}
    for each in session.scalars(select(RuleHits.refused)):
        for bound in found:
            found[bound] += each.get(bound, 0)
    return found


def bounds_told(ctx: Context, vpc_id: str, seen: Refusals) -> None:
    """Tell of guests for whom a bound has refused something lately, but for those of whom that was told within the last hour."""
    concerned = {address: bound for bound, addresses in seen.addresses.items() for address in addresses}
    if not concerned:
        return
    with transaction(ctx.db):
        vpc = ctx.db.scalars(select(Vpc).where(Vpc.id == vpc_id, Vpc.deleted_at.is_(None))).first()
        if vpc is None:
            return
        lately = select(Event.payload).where(Event.resource_id == vpc_id, Event.type == REACHED, Event.at > now() - QUIET)
        told = {payload["address"] for payload in ctx.db.scalars(lately)}
        for address, bound in sorted(concerned.items()):
            if address not in told:
                payload = {"address": address, "bound": bound.value, "limit": LIMITS[bound]}
                events.emit(ctx, REACHED, resource_id=vpc.id, name=vpc.name, project_id=vpc.project_id, payload=payload)
                audit.record(ctx, REACHED, audit.Subject("networking.vpc", vpc.id, vpc.name, vpc.project_id), details=payload)
