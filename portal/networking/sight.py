"""What somebody who may see a VPC may see in it: drawings, addresses and answers tell no more of a thing than its own list would."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import select

from portal.kernel.context import Context
from portal.kernel.lookup import unseen
from portal.networking.models import InternetGateway, NatGateway, NetworkInterface, SecurityGroup, Subnet, Vpc, VpcPeering

INSIDE = (Subnet, SecurityGroup, NatGateway, InternetGateway, NetworkInterface)


@dataclass(frozen=True, slots=True)
class Sight:
    """Ids of what may not be seen in some VPCs, and of instances whose interfaces may be."""

    hidden: frozenset[str] = field(default_factory=frozenset)

    def sees(self, some_id: str) -> bool:
        """Whether a thing may be seen."""
        return some_id not in self.hidden


WHOLE = Sight()


def sight_of(ctx: Context, vpc_ids: Sequence[str]) -> Sight:
    """What the caller may see in VPCs of the current project."""
    hidden: set[str] = set()
    for model in INSIDE:
        hidden.update(unseen(ctx, model, model.id, model.vpc_id.in_(vpc_ids)))
    joins = VpcPeering.vpc_id.in_(vpc_ids) | VpcPeering.peer_vpc_id.in_(vpc_ids)
    projects = select(Vpc.project_id).where(Vpc.id.in_(vpc_ids))
    hidden.update(unseen(ctx, VpcPeering, VpcPeering.link_id, joins, VpcPeering.project_id.in_(projects)))
    instance = ctx.registry.model("compute.instance")
    guests = select(NetworkInterface.instance_id).where(NetworkInterface.vpc_id.in_(vpc_ids), NetworkInterface.deleted_at.is_(None))
    hidden.update(unseen(ctx, instance, instance.id, instance.id.in_(guests)))
    return Sight(frozenset(hidden))
