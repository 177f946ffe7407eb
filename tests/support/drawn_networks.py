"""Networks that chance draws through the portal's own operations, and who could call whom in them."""

import random
from dataclasses import dataclass, replace
from typing import Any

from portal.kernel.errors import PortalError
from portal.kernel.operations import run
from portal.networking.models import NetworkInterface, RouteTable, SecurityGroup, Subnet, Vpc, VpcPeering
from portal.networking.reachability import Specs
from portal.networking.view import specs_seen
from tests.support.network import EVERYWHERE
from tests.support.scenarios import TINY, Stage

RANGES = {"a": "10.0.0.0/16", "b": "10.1.0.0/16", "c": "10.0.0.0/16", "d": "172.16.0.0/20"}
PAIRS = (("a", "b"), ("b", "c"), ("b", "d"), ("a", "d"))
PORTS = (22, 80, 443)
DNS, ECHO, TIMESTAMP = 53, 8, 13
# Where nothing is, but what a route to an interface leads to.
BEHIND = "192.0.2.7"
METADATA = "169.254.169.254"


@dataclass(frozen=True)
class Call:
    """Who calls which address, and with what; the source is an interface or the address of the neighbour outside."""

    source: str
    target: str
    protocol: str
    port: int


class Drawing:
    """Several VPCs of one project with everything that a member could make, as chance has it."""

    def __init__(self, stage: Stage, seed: int, outside: str) -> None:
        self.stage, self.outside, self._chance = stage, outside, random.Random(seed)  # noqa: S311 - the same each time
        self._external = outside.rsplit(".", 1)[0]
        self._vpcs = {key: self._vpc(key) for key in RANGES}
        self._peerings = {pair: self._peering(*pair) for pair in PAIRS if self._chance.random() < 0.75}
        for key in RANGES:
            self._routes(key)
        self._changes()
        stage.worker.drain()
        stage.ctx.db.rollback()

    def specs(self) -> Specs:
        """The state that the host was given, as answers are read from it, in an order that does not depend on ids."""
        found, _ = specs_seen(self.stage.ctx)
        ordered = sorted(found.vpcs, key=lambda vpc: vpc.domain)
        return replace(found, vpcs=[replace(vpc, ports=sorted(vpc.ports, key=lambda port: port.address)) for vpc in ordered])

    def _do(self, name: str, target: str | None = None, /, **data: Any) -> Any:
        """Run an operation; its row."""
        return run(self.stage.ctx, self.stage.ctx.registry.operation(f"networking.{name}"), target, data).row

    def _try(self, name: str, target: str | None = None, /, **data: Any) -> None:
        """Run an operation; what is refused is not a part of the drawing."""
        try:
            self._do(name, target, **data)
        except PortalError:
            self.stage.ctx.db.rollback()

    def _live(self, model: Any, vpc: Any) -> list[Any]:
        self.stage.ctx.db.rollback()
        query = self.stage.ctx.db.query(model).filter(model.vpc_id == vpc.id, model.deleted_at.is_(None))
        return list(query.order_by(model.name))

    # -- VPCs --------------------------------------------------------------------------------------------------------------------------------

    def _vpc(self, key: str) -> Vpc:
        vpc = self._do("vpc.create", name=key, cidr_block=RANGES[key], enable_network_address_translation=self._chance.random() < 0.6)
        base = RANGES[key].rsplit(".", 2)[0]
        for number in (1, 2, 3)[: self._chance.randint(2, 3)]:
            self._do("subnet.create", name=f"{key}-s{number}", vpc=key, cidr_block=f"{base}.{number}.0/24")
        if self._chance.random() < 0.85:
            self._do("internet_gateway.create", name=f"{key}-gateway", vpc=key)
            self._do("route_table.set_default_route", vpc.main_route_table_id, target_type="internet-gateway")
            self.stage.worker.drain()
            if self._chance.random() < 0.7:
                self._try("nat_gateway.create", name=f"{key}-nat", subnet=f"{key}-s1")
        for number in range(3):
            self._do("security_group.create", name=f"{key}-g{number}", vpc=key)
        for group in self._live(SecurityGroup, vpc):
            self._rules(key, group.id)
        self.stage.worker.drain()
        self._interfaces(key, vpc)
        return vpc  # type: ignore[no-any-return]

    def _rules(self, key: str, group_id: str) -> None:
        group = self.stage.ctx.db.get_one(SecurityGroup, group_id)
        out = [rule.id for rule in group.rules if rule.direction == "egress"]
        if self._chance.random() < 0.35:
            self._do("security_group.remove_rule", group_id, rule_id=out[0])
        for _ in range(self._chance.randint(3, 6)):
            self._try("security_group.add_rule", group_id, **self._rule(key))

    def _rule(self, key: str) -> dict[str, Any]:
        protocol = self._chance.choice(("tcp", "tcp", "tcp", "udp", "icmp", "-1"))
        found: dict[str, Any] = {"direction": self._chance.choice(("ingress", "ingress", "egress")), "protocol": protocol}
        if protocol in {"tcp", "udp"}:
            low, high = sorted((self._chance.choice((0, *PORTS)), self._chance.choice((*PORTS, 65_535))))
            found |= {"from_port": low, "to_port": high}
        elif protocol == "icmp" and self._chance.random() < 0.6:
            found["icmp_type"] = self._chance.choice((ECHO, TIMESTAMP))
        if self._chance.random() < 0.3:
            return {**found, "referenced_group": f"{key}-g{self._chance.randint(0, 2)}"}
        base = RANGES[key].rsplit(".", 2)[0]
        near = [RANGES[key], f"{base}.1.0/24", f"{base}.2.4/31"]
        ranges = [
            EVERYWHERE,
            EVERYWHERE,
            *near,
            *RANGES.values(),
            "10.0.0.0/8",
            f"{self._external}.0/24",
            f"{self._external}.0/29",
            f"{self.outside}/32",
        ]
        return {**found, "cidr": self._chance.choice(ranges)}

    def _interfaces(self, key: str, vpc: Vpc) -> None:
        names = [subnet.name for subnet in self._live(Subnet, vpc)]
        for number in range(self._chance.randint(2, 3)):
            some = {"subnet_id": self._chance.choice(names), "security_groups": self._groups(key)}
            create = self.stage.ctx.registry.operation("compute.instance.create")
            run(self.stage.ctx, create, None, {"name": f"{key}-i{number}", "flavor": "t3-micro", "image": TINY, **some})
        self.stage.worker.drain()
        # One card more for the first machine, and perhaps one that waits.
        for number in range(self._chance.randint(1, 2)):
            spare = self._do(
                "network_interface.create", name=f"{key}-n{number}", subnet=self._chance.choice(names), security_groups=self._groups(key)
            )
            if number == 0:
                self._do("network_interface.attach", spare.id, instance=f"{key}-i0")
        for each in self._live(NetworkInterface, vpc):
            if self._chance.random() < 0.5:
                elastic = self._do("elastic_ip.create", name=f"e-{each.id}")
                self._try("elastic_ip.associate", elastic.id, target_type="network-interface", target_id=each.id)

    def _groups(self, key: str) -> list[str]:
        return self._chance.sample([f"{key}-g{number}" for number in range(3)], self._chance.randint(1, 2))

    # -- ways --------------------------------------------------------------------------------------------------------------------------------

    def _peering(self, one: str, other: str) -> VpcPeering:
        peering = self._do("vpc_peering.create", name=f"{one}-{other}", vpc=one, peer_vpc=other)
        if self._chance.random() < 0.9:
            self._do("vpc_peering.accept", peering.id)
        return peering  # type: ignore[no-any-return]

    def _routes(self, key: str) -> None:
        vpc = self._vpcs[key]
        own = self._do("route_table.create", name=f"{key}-own", vpc=key)
        for number in (2, 3):
            if self._chance.random() < 0.6:
                self._try("route_table.associate", own.id, subnet=f"{key}-s{number}")
        for table in self._live(RouteTable, vpc):
            for pair in self._peerings:
                # Mostly as somebody who wants the two to meet would do it.
                if key in pair and self._chance.random() < 0.8:
                    (peer,) = set(pair) - {key}
                    self._route(
                        table.id, self._chance.choice((RANGES[peer], RANGES[peer], f"{RANGES[peer].rsplit('.', 2)[0]}.1.0/24")), "vpc-peering", pair
                    )
            for destination in self._chance.sample(self._destinations(key), self._chance.randint(1, 4)):
                self._route(table.id, destination, *self._somewhere(key))
            if not table.is_main and self._chance.random() < 0.7:
                self._route(table.id, EVERYWHERE, "nat-gateway", f"{key}-nat")

    def _destinations(self, key: str) -> list[str]:
        others = [cidr for other, cidr in RANGES.items() if cidr != RANGES[key]]
        return [
            EVERYWHERE,
            "192.0.2.0/24",
            "10.0.0.0/8",
            *others,
            f"{self._external}.0/24",
            f"{self._external}.0/28",
            f"{self._external}.4/30",
            "100.64.0.0/10",
        ]

    def _somewhere(self, key: str) -> tuple[str, Any]:
        kind = self._chance.choice(("internet-gateway", "nat-gateway", "vpc-peering", "network-interface"))
        mine = [pair for pair in self._peerings if key in pair]
        if kind == "vpc-peering" and mine:
            return kind, self._chance.choice(mine)
        if kind == "network-interface":
            return kind, self._chance.choice([each.id for each in self._live(NetworkInterface, self._vpcs[key])])
        return kind, f"{key}-nat" if kind == "nat-gateway" else ""

    def _route(self, table_id: str, destination: str, kind: str, target: Any) -> None:
        target_id = target if isinstance(target, str) else self._peerings[target].id
        self._try("route_table.add_route", table_id, destination_cidr=destination, target_type=kind, target_id=target_id)

    def _changes(self) -> None:
        """What is taken away again: routes whose target is gone stay."""
        self.stage.worker.drain()
        for key, vpc in self._vpcs.items():
            if self._chance.random() < 0.2:
                self._try("nat_gateway.delete", self._id_of(f"{key}-nat"))
            for group in self._live(SecurityGroup, vpc):
                if self._chance.random() < 0.3:
                    self._do("security_group.update_rule", group.id, rule_id=self._chance.choice([rule.id for rule in group.rules]), is_enabled=False)
        for peering in self._peerings.values():
            if self._chance.random() < 0.1:
                self._try("vpc_peering.delete", peering.id)

    def _id_of(self, name: str) -> str:
        found = self.stage.ctx.db.query(self.stage.ctx.registry.model("networking.nat_gateway")).filter_by(name=name, deleted_at=None).first()
        return found.id if found is not None else name

    # -- calls -------------------------------------------------------------------------------------------------------------------------------

    def calls(self, specs: Specs, count: int) -> list[Call]:
        """Calls between those who may know of each other, most of them within or to what is linked."""
        ports = [(vpc, port) for vpc in specs.vpcs for port in vpc.ports]
        inner = [port.address for _, port in ports]
        outer = [port.public_address for _, port in ports if port.public_address]
        gateways = [text for vpc in specs.vpcs for text in (vpc.uplink_address, *(nat.public_address for nat in vpc.nats)) if text]
        routers = sorted({subnet.cidr.rsplit(".", 1)[0] + ".1" for vpc in specs.vpcs for subnet in vpc.subnets})
        found: set[Call] = set()
        while len(found) < count:
            vpc, port = self._chance.choice(ports)
            near = [each.address for each in vpc.ports if each is not port]
            linked = [each.address for other in specs.vpcs for each in other.ports if self._linked(specs, vpc.vpc_id, other.vpc_id)]
            pool = self._chance.choice(
                (
                    near,
                    near,
                    linked or near,
                    linked or near,
                    outer,
                    outer,
                    inner,
                    [self.outside],
                    [BEHIND],
                    gateways,
                    [*routers, METADATA, f"{self._external}.1"],
                )
            )
            target = self._chance.choice(pool or near)
            source = self.outside if pool is outer and self._chance.random() < 0.5 else port.port_id
            if target not in {port.address, port.public_address} or source == self.outside:
                found.add(Call(source, target, *self._what(target)))
        return sorted(found, key=str)

    def pairs(self, specs: Specs, count: int) -> list[tuple[str, str, list[str], Call]]:
        """Two interfaces, the addresses by which one may call the other, and what with."""
        ports = [(vpc, port) for vpc in specs.vpcs for port in vpc.ports]
        found = []
        for _ in range(count):
            (here, caller), (there, called) = self._chance.sample(ports, 2)
            inner = [called.address] if here is there or self._linked(specs, here.vpc_id, there.vpc_id) else []
            outer = [called.public_address] if called.public_address and here is not there else []
            found.append((caller.port_id, called.port_id, inner + outer, Call(caller.port_id, "", *self._what(called.address))))
        return found

    def _what(self, target: str) -> tuple[str, int]:
        if self._chance.random() < 0.6:
            return "tcp", self._chance.choice((*PORTS, DNS) if target.endswith(".1") else PORTS)
        if self._chance.random() < 0.5:
            return "udp", self._chance.choice((*PORTS, DNS) if target.endswith(".1") else PORTS)
        return "icmp", self._chance.choice((ECHO, TIMESTAMP))

    @staticmethod
    def _linked(specs: Specs, one: str, other: str) -> bool:
        return any({one, other} == set(peering.vpc_ids) for peering in specs.peerings)
