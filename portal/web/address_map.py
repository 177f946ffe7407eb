"""The addresses of a subnet: a map in which each has its place, or in a large one each block of them, and who has those that are taken."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from sqlalchemy import select

from portal.kernel.context import Context
from portal.networking.addresses import reserved, usage
from portal.networking.changes import UNSEEN
from portal.networking.models import IpAllocation, NetworkInterface, Subnet
from portal.networking.sight import sight_of
from portal.networking.subnets import SUBNET, subnet_reserve_address
from portal.networking.view import owners_of
from portal.web.derived import why_not

CELLS = 256
LISTED = 500
PAGES: Mapping[str, str] = {"networking.network_interface": "/networking/network-interfaces", "networking.nat_gateway": "/networking/nat-gateways"}
KINDS: Mapping[str, str] = {"networking.network_interface": "Interface", "networking.nat_gateway": "NAT gateway", "": "Reserved"}


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has an address: a network's own use of it has no `since`, a reservation no page."""

    address: str
    label: str
    kind: str
    url: str = ""
    since: datetime | None = None
    is_reserved: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One address in the map, or a block of them: `kind` is free, taken, reserved or kept, `quarters` how full a block is."""

    label: str
    kind: str
    text: str
    url: str = ""
    quarters: int = 0


def tab(ctx: Context, subnet: Subnet) -> Mapping[str, Any]:
    """What the tab of addresses shows."""
    rows = ctx.db.scalars(select(IpAllocation).where(IpAllocation.subnet_id == subnet.id)).all()
    figures = usage(subnet.cidr_block, len(rows))
    held = _holders(ctx, subnet, sorted(rows, key=lambda row: IPv4Address(row.address))[:LISTED])
    kept = [Holder(address, role.replace("_", " ").capitalize(), "Kept") for address, role in reserved(subnet.cidr_block).items()]
    is_small = figures.total <= CELLS
    cells = _addresses(subnet.cidr_block, [*kept, *held]) if is_small else _blocks(subnet.cidr_block, [row.address for row in rows])
    return {
        "usage": figures, "cells": cells, "is_small": is_small, "block_size": max(1, figures.total // CELLS), "more": len(rows) - len(held),
        "holders": sorted([*kept, *held], key=lambda each: IPv4Address(each.address)), "reserved": sum(not row.resource_id for row in rows),
        "why_not": why_not(ctx, SUBNET, subnet_reserve_address, subnet),
    }  # fmt: skip


def _holders(ctx: Context, subnet: Subnet, rows: Sequence[IpAllocation]) -> list[Holder]:
    sight = sight_of(ctx, [subnet.vpc_id])
    ids = [row.resource_id for row in rows if row.resource_type == "networking.network_interface"]
    cards = ctx.db.scalars(select(NetworkInterface).where(NetworkInterface.id.in_(ids))).all() if ids else []
    owners = owners_of(ctx, cards)
    names = {card.id: owners[card.instance_id] for card in cards if card.instance_id and card.instance_id in owners}
    found = []
    for row in rows:
        if not sight.sees(row.resource_id):
            found.append(Holder(row.address, UNSEEN, KINDS.get(row.resource_type, ""), "", row.allocated_at))
            continue
        url = f"{PAGES[row.resource_type]}/{row.resource_id}" if row.resource_type in PAGES else ""
        label = names.get(row.resource_id) or row.description or row.resource_id
        found.append(Holder(row.address, label, KINDS.get(row.resource_type, ""), url, row.allocated_at, is_reserved=not row.resource_id))
    return found


def _addresses(cidr: str, holders: Sequence[Holder]) -> list[Cell]:
    by_address, found = {each.address: each for each in holders}, []
    for address in map(str, IPv4Network(cidr)):
        last, holder = address.rpartition(".")[2], by_address.get(address)
        if holder is None:
            found.append(Cell(last, "free", f"{address}: free"))
            continue
        kind = "kept" if holder.since is None else "reserved" if holder.is_reserved else "taken"
        found.append(Cell(last, kind, f"{address}: {holder.label}", holder.url))
    return found


def _blocks(cidr: str, taken: Sequence[str]) -> list[Cell]:
    """A large subnet in CELLS blocks, each as dark as it is full."""
    network = IPv4Network(cidr)
    blocks = list(network.subnets(new_prefix=network.prefixlen + CELLS.bit_length() - 1))
    size, first = blocks[0].num_addresses, int(network.network_address)
    counts = Counter((int(IPv4Address(address)) - first) // size for address in taken)
    return [
        Cell("", "taken" if counts[number] else "free", f"{block}: {counts[number]} of {size} taken", quarters=-(-4 * counts[number] // size))
        for number, block in enumerate(blocks)
    ]
