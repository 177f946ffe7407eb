"""Giving addresses away, of subnets and of the external network: the database's constraint decides between two who want the same."""

from collections.abc import Iterable
from ipaddress import IPv4Network

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import Conflict, InvalidRequest
from portal.kernel.ids import new_id
from portal.networking.addresses import candidates, check_address, usage
from portal.networking.models import EXTERNAL, IpAllocation, Subnet

PUBLIC = "the external network"


def take(session: Session, subnet: Subnet, owner: tuple[str, str], *, wanted: str = "", field: str = "private_ip", description: str = "") -> str:
    """Give an address of a subnet to a resource (type, id), within the caller's transaction: the wanted one, or the lowest that is free.

    Raises InvalidRequest for one that nobody can have, Conflict for one that is taken and where none is left.
    """
    if wanted:
        try:
            wanted = check_address(wanted, subnet.cidr_block)
        except ValueError as error:
            raise InvalidRequest.fields({field: [f"{error}."]}) from None
        if not _insert(session, subnet.id, wanted, owner, description):
            text = f"{wanted} is in use already. Choose another address, or none to be given one."
            raise Conflict(f"{field}: {text}", details={field: [text]})
        return wanted
    found = _lowest(session, subnet.id, candidates(subnet.cidr_block), owner, description)
    if found is None:
        usable = usage(subnet.cidr_block, 0).usable
        raise Conflict(
            f"{subnet.name} ({subnet.cidr_block}) has no free address: {usable:,} of {usable:,} are taken. Release one or use another subnet.",
            details={"subnet_id": subnet.id, "limit": usable, "used": usable, "requested": 1},
        )
    return found


def take_public(ctx: Context, owner: tuple[str, str]) -> str:
    """Give an address of the external network to a resource, within the caller's transaction. Raises Conflict where none is left."""
    network = IPv4Network(ctx.settings.network_external_cidr)
    # The first is the host's.
    addresses = (str(network[number]) for number in range(2, network.num_addresses - 1))
    found = _lowest(ctx.db, EXTERNAL, addresses, owner, "")
    if found is None:
        raise Conflict(f"No address of {PUBLIC} ({network}) is left. Release one, or ask an administrator for a larger range.")
    return found


def _lowest(session: Session, pool: str, addresses: Iterable[str], owner: tuple[str, str], description: str) -> str | None:
    # Always upwards: two that take several each wait for one another in one direction only.
    taken = set(session.scalars(select(IpAllocation.address).where(IpAllocation.subnet_id == pool)))
    return next((each for each in addresses if each not in taken and _insert(session, pool, each, owner, description)), None)


def _insert(session: Session, pool: str, address: str, owner: tuple[str, str], description: str) -> bool:
    """Whether the address is ours now; waits for somebody who is just taking it."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    values = {
        "id": new_id("ipa"), "subnet_id": pool, "address": address, "resource_type": owner[0], "resource_id": owner[1], "description": description,
        "allocated_at": now(),
    }  # fmt: skip
    return session.execute(insert(IpAllocation).values(values).on_conflict_do_nothing().returning(IpAllocation.id)).first() is not None


def release(session: Session, pool: str, address: str) -> None:
    """Give an address back within the caller's transaction; one that is free already stays so."""
    mine = (IpAllocation.subnet_id == pool, IpAllocation.address == address)
    session.execute(delete(IpAllocation).where(*mine).execution_options(synchronize_session=False))


def release_of(session: Session, resource_id: str) -> None:
    """Give back everything that a resource has."""
    session.execute(delete(IpAllocation).where(IpAllocation.resource_id == resource_id).execution_options(synchronize_session=False))
