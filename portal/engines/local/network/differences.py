"""Looks for what is no longer as it was made: somebody deleted a bridge, flushed the rules, killed a name server."""

from collections.abc import Callable, Iterator, Sequence

from portal.engines.local.network import names, namespaces, nft
from portal.engines.local.network.links import Links
from portal.engines.local.network.listing import Link
from portal.engines.local.network.name_server import NameServer
from portal.engines.local.network.router import Router, linked
from portal.engines.local.network.routing import PEER_GATEWAY
from portal.engines.network_ports import PeeringSpec, VpcSpec, tap_name
from portal.engines.network_store import VpcRecord

SENTENCES = {
    "unfinished": "A change was not finished.",
    "router": "The router's namespace is gone.",
    "rules": "The router's rules were changed or are gone.",
    "guard": "The rules at the guests' ports were changed or are gone.",
    "links": "A bridge, a tap or a link is missing or not as it should be.",
    "addresses": "An address of the router is missing or one too many.",
    "routes": "A route is missing or one too many.",
    "neighbours": "The other end of a peering is not known by its address any more.",
    "settings": "A setting of the router's kernel was changed.",
    "names": "The name server does not answer.",
    "metadata": "The metadata service does not answer.",
    "external": "The host's side of the external network is missing or not as it should be.",
}


def differences(
    record: VpcRecord,
    router: Router,
    fabric: dict[str, Link],
    peerings: Sequence[PeeringSpec],
    *,
    epoch: int,
    server: NameServer,
    is_answered: Callable[[], bool],
) -> Iterator[str]:
    """What is not as it was last made, as keys of the sentences."""
    if not (record.is_finished and record.is_purged):
        yield "unfinished"
        return
    if namespaces.identity(router.name) != record.namespace:
        yield "router"
        return
    if nft.generation(router.name) != record.generation:
        yield "rules"
    if record.epoch != epoch:
        yield "guard"
    yield from _ways(record.spec, router, fabric, peerings)
    if not namespaces.has_kernel(router.name, router.settings(record.spec)):
        yield "settings"
    if not server.is_right(record.spec):
        yield "names"
    if not is_answered():
        yield "metadata"


def _ways(spec: VpcSpec, router: Router, fabric: dict[str, Link], peerings: Sequence[PeeringSpec]) -> Iterator[str]:
    with Links(router.name) as links:
        known = links.all()
        if not (all(_are_connected(spec, fabric)) and all(link.is_up for link in known.values()) and _sides(spec) <= set(known)):
            yield "links"
        wanted = {(known[name].index, text) for name, text in router.addresses(spec) if name in known}
        if wanted != links.addresses():
            yield "addresses"
        there = linked(links, peerings)
        routes, lookups = router.routes(spec, there)
        if routes != links.routes() or lookups != links.lookups() or len(there) != len(peerings):
            yield "routes"
        others = {(known[name].index, PEER_GATEWAY, mac) for name, mac in router.neighbours(spec, peerings) if name in known}
        # Asked for with a dump of all there are, so only where there is something to compare.
        if others and not others <= links.neighbours():
            yield "neighbours"


def _sides(spec: VpcSpec) -> set[str]:
    sides = {names.subnet_side(subnet) for subnet in spec.subnets} | {names.nat_side(nat) for nat in spec.nats}
    return sides | ({names.UPLINK} if spec.uplink_address else set())


def _are_connected(spec: VpcSpec, fabric: dict[str, Link]) -> Iterator[bool]:
    bridges = {subnet.subnet_id: names.bridge(subnet) for subnet in spec.subnets}
    for subnet in spec.subnets:
        yield _is_in(fabric, names.router_end(subnet), bridges[subnet.subnet_id])
    for port in spec.ports:
        tap = tap_name(port.port_id)
        yield _is_in(fabric, tap, bridges[port.subnet_id]) and fabric[tap].is_isolated
    for identifier in [*([spec.vpc_id] if spec.uplink_address else []), *(nat.nat_id for nat in spec.nats)]:
        yield _is_in(fabric, names.uplink_end(identifier), names.EXTERNAL_BRIDGE)


def _is_in(fabric: dict[str, Link], name: str, bridge: str) -> bool:
    link, master = fabric.get(name), fabric.get(bridge)
    return link is not None and master is not None and link.is_up and master.is_up and link.master == master.index
