"""The rows of networking. A VPC is the unit that is made on a host: whatever changes in it bumps its desired revision."""

from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, UniqueConstraint, func, select, text
from sqlalchemy.orm import Mapped, column_property, mapped_column, relationship

from portal.engines.network_ports import Direction, IpProtocol, RuleSpec
from portal.kernel import fields as f
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now
from portal.kernel.ids import new_id
from portal.kernel.resource import LIVE, ProjectOwned, Stateful

TIERS = ("public", "private", "database")
DIRECTIONS = tuple(each.value for each in Direction)
PROTOCOLS = tuple(each.value for each in IpProtocol)
TARGETS = ("internet-gateway", "nat-gateway", "vpc-peering", "network-interface")
TRAFFIC = ("all", "accept", "reject")
# Of the external network instead of a subnet.
EXTERNAL = "external"
DEFAULT = text("is_default AND deleted_at IS NULL")


class Vpc(ProjectOwned, Stateful, Base):
    """A private network with its own range; others may have the same."""

    __tablename__ = "vpcs"

    cidr_block: Mapped[str] = f.field(f.Line(18), label="Range", help="A private range from /16 to /28, such as 10.0.0.0/16.", sortable=True)
    region: Mapped[str] = f.field(f.Line(64), label="Region", default="local")
    is_default: Mapped[bool] = f.field(f.Bool(), label="Default", default=False, filterable=True)
    enable_dns_support: Mapped[bool] = f.field(
        f.Bool(),
        label="Names of the VPC",
        default=True,
        editable=True,
        help="Answer names in the VPC's own domain; other names are answered either way.",
    )
    enable_dns_hostnames: Mapped[bool] = f.field(
        f.Bool(), label="Names of instances", default=True, editable=True, help="Answer the names of instances in the VPC."
    )
    enable_network_address_translation: Mapped[bool] = f.field(
        f.Bool(), label="Shared outbound address", default=True, editable=True,
        help="Instances without a public address that are routed to the internet gateway leave with the VPC's own.",
    )  # fmt: skip
    dns_servers: Mapped[str] = f.field(
        f.Line(255), label="Name servers outside", default="", editable=True,
        help="Whom the VPC's name server asks for names outside the VPC: up to four addresses, separated by commas; this host's own if left empty. "
        "Guests are always given the VPC's name server.",
    )  # fmt: skip
    search_domains: Mapped[str] = f.field(
        f.Line(255), label="Search domains", default="", editable=True,
        help="Told to guests with their addresses: domains in which short names are looked for, up to six, separated by commas; the VPC's own if left empty.",
    )  # fmt: skip
    ntp_servers: Mapped[str] = f.field(
        f.Line(255),
        label="NTP servers",
        default="",
        editable=True,
        help="Told to guests with their addresses: up to four addresses, separated by commas.",
    )
    mtu: Mapped[int | None] = f.field(
        f.Int(576, 1500), label="MTU", unit="bytes", nullable=True, editable=True,
        help="Told to guests with their addresses: the largest packet that they send; 1500 if left empty.",
    )  # fmt: skip
    flow_logs_enabled: Mapped[bool] = f.field(f.Bool(), label="Flow log", default=False)
    flow_logs_traffic: Mapped[str] = f.field(f.Choice(TRAFFIC), label="In the flow log", default="all")
    uplink_address: Mapped[str] = f.field(f.Line(15), label="Outbound address", default="")
    main_route_table_id: Mapped[str | None] = f.field(f.Ref("networking.route_table"), label="Main route table", nullable=True)
    default_group_id: Mapped[str | None] = f.field(f.Ref("networking.security_group"), label="Default security group", nullable=True)
    desired_revision: Mapped[int] = f.field(f.Int(0, 2**62), label="Revision", default=1)
    applied_revision: Mapped[int] = f.field(f.Int(0, 2**62), label="Applied revision", default=0)


# Two first instances of a project at once make one default VPC.
Index("uq_vpcs_live_default", Vpc.project_id, unique=True, sqlite_where=DEFAULT, postgresql_where=DEFAULT)


class IpAllocation(Base):
    """An address that is taken, of a subnet or of the external network; the constraint keeps one from being given twice."""

    __tablename__ = "ip_allocations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("ipa"))
    subnet_id: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(15))
    resource_type: Mapped[str] = mapped_column(String(64), default="")
    resource_id: Mapped[str] = mapped_column(String(64), default="", index=True)
    description: Mapped[str] = mapped_column(String(255), default="")
    allocated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    __table_args__ = (UniqueConstraint("subnet_id", "address"),)


class Subnet(ProjectOwned, Base):
    """A part of a VPC's range in which instances live."""

    __tablename__ = "subnets"

    vpc_id: Mapped[str] = f.field(f.Ref("networking.vpc", exclusive=True), label="VPC", references="vpcs.id", filterable=True)
    cidr_block: Mapped[str] = f.field(f.Line(18), label="Range", help="Inside the VPC's range, from /16 to /28; overlaps no other.", sortable=True)
    availability_zone: Mapped[str] = f.field(f.Line(64), label="Zone", default="local-a", filterable=True)
    map_public_ip_on_launch: Mapped[bool] = f.field(
        f.Bool(), label="Public address at launch", default=False, editable=True, help="Each new instance gets a public address."
    )
    is_default: Mapped[bool] = f.field(f.Bool(), label="Default", default=False, filterable=True)
    tier: Mapped[str] = f.field(
        f.Choice(TIERS), label="Tier", default="private", filterable=True, help="What it is meant for; routes and rules decide."
    )
    route_table_id: Mapped[str | None] = f.field(f.Ref("networking.route_table"), label="Route table", references="route_tables.id", nullable=True)

    vpc: Mapped[Vpc] = relationship()
    # How many of its addresses are taken; a list of subnets asks once.
    if TYPE_CHECKING:
        taken: int


Subnet.taken = column_property(  # type: ignore[assignment]
    select(func.count(IpAllocation.id)).where(IpAllocation.subnet_id == Subnet.id).correlate_except(IpAllocation).scalar_subquery()
)


class SecurityGroup(ProjectOwned, Base):
    """Rules about what may reach the interfaces that are in the group, and what these may reach."""

    __tablename__ = "security_groups"

    vpc_id: Mapped[str] = f.field(f.Ref("networking.vpc", exclusive=True), label="VPC", references="vpcs.id", filterable=True)
    is_default: Mapped[bool] = f.field(f.Bool(), label="Default", default=False, filterable=True)

    vpc: Mapped[Vpc] = relationship()
    rules: Mapped[list["SecurityGroupRule"]] = relationship(
        order_by="SecurityGroupRule.direction.desc(), SecurityGroupRule.created_at, SecurityGroupRule.id", foreign_keys="SecurityGroupRule.group_id",
        back_populates="group", cascade="all, delete-orphan",
    )  # fmt: skip


class SecurityGroupRule(Base):
    """What a group lets through, and between whom."""

    __tablename__ = "security_group_rules"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("rule"))
    group_id: Mapped[str] = mapped_column(ForeignKey("security_groups.id"))
    direction: Mapped[str] = mapped_column(String(8))
    protocol: Mapped[str] = mapped_column(String(8))
    from_port: Mapped[int | None]
    to_port: Mapped[int | None]
    icmp_type: Mapped[int | None]
    cidr: Mapped[str] = mapped_column(String(18), default="")
    referenced_group_id: Mapped[str | None] = mapped_column(ForeignKey("security_groups.id"), index=True)
    description: Mapped[str] = mapped_column(String(255), default="")
    is_enabled: Mapped[bool] = mapped_column(default=True)
    fingerprint: Mapped[str] = mapped_column(String(160))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    group: Mapped[SecurityGroup] = relationship(foreign_keys=[group_id], back_populates="rules")

    # The same rule twice says nothing more.
    __table_args__ = (UniqueConstraint("group_id", "fingerprint"),)

    def spec(self) -> RuleSpec:
        """The rule as engines and evaluators read it."""
        return RuleSpec(
            self.id, Direction(self.direction), IpProtocol(self.protocol), self.from_port, self.to_port, self.icmp_type, self.cidr,
            self.referenced_group_id or "",
        )  # fmt: skip


class RouteTable(ProjectOwned, Base):
    """Where a subnet's packets go that are not for the VPC itself."""

    __tablename__ = "route_tables"

    vpc_id: Mapped[str] = f.field(f.Ref("networking.vpc", exclusive=True), label="VPC", references="vpcs.id", filterable=True)
    is_main: Mapped[bool] = f.field(f.Bool(), label="Main", default=False, filterable=True, help="Of every subnet that has no table of its own.")

    vpc: Mapped[Vpc] = relationship()
    subnets: Mapped[list[Subnet]] = relationship(
        viewonly=True, primaryjoin="and_(Subnet.route_table_id == RouteTable.id, Subnet.deleted_at.is_(None))", order_by="Subnet.cidr_block"
    )
    routes: Mapped[list["Route"]] = relationship(order_by="Route.destination_cidr", back_populates="table", cascade="all, delete-orphan")


class Route(Base):
    """One line of a route table; the longest prefix wins."""

    __tablename__ = "routes"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("route"))
    route_table_id: Mapped[str] = mapped_column(ForeignKey("route_tables.id"))
    destination_cidr: Mapped[str] = mapped_column(String(18))
    target_type: Mapped[str] = mapped_column(String(32))
    target_id: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    table: Mapped[RouteTable] = relationship(back_populates="routes")

    __table_args__ = (UniqueConstraint("route_table_id", "destination_cidr"),)


class InternetGateway(ProjectOwned, Base):
    """The way of a VPC to the internet and back."""

    __tablename__ = "internet_gateways"

    vpc_id: Mapped[str | None] = f.field(f.Ref("networking.vpc", exclusive=True), label="VPC", references="vpcs.id", nullable=True, filterable=True)

    vpc: Mapped[Vpc | None] = relationship()


Index("uq_internet_gateways_live_vpc", InternetGateway.vpc_id, unique=True, sqlite_where=LIVE, postgresql_where=LIVE)


class NetworkInterface(ProjectOwned, Stateful, Base):
    """A network card of an instance, or one that waits for one: an address in a subnet, and the groups whose rules hold."""

    __tablename__ = "network_interfaces"

    vpc_id: Mapped[str] = f.field(f.Ref("networking.vpc"), label="VPC", references="vpcs.id", filterable=True)
    subnet_id: Mapped[str] = f.field(f.Ref("networking.subnet"), label="Subnet", references="subnets.id", filterable=True)
    private_ip: Mapped[str] = f.field(
        f.Line(15), label="Private address", help="An address of the subnet; the lowest free one if left empty.", default=""
    )
    public_ip: Mapped[str] = f.field(f.Line(15), label="Public address", default="")
    mac_address: Mapped[str] = f.field(f.Line(17), label="MAC")
    # No reference: the record of an instance is forgotten earlier.
    instance_id: Mapped[str | None] = f.field(f.Line(64), label="Instance", nullable=True, filterable=True, index=True)
    is_primary: Mapped[bool] = f.field(f.Bool(), label="Of its instance", default=False, help="The first of an instance; goes with it.")

    vpc: Mapped[Vpc] = relationship()
    subnet: Mapped[Subnet] = relationship()
    memberships: Mapped[list["GroupMembership"]] = relationship(cascade="all, delete-orphan", order_by="GroupMembership.group_id")


class GroupMembership(Base):
    """An interface in a security group."""

    __tablename__ = "network_interface_groups"

    interface_id: Mapped[str] = mapped_column(ForeignKey("network_interfaces.id"), primary_key=True)
    group_id: Mapped[str] = mapped_column(ForeignKey("security_groups.id"), primary_key=True, index=True)

    group: Mapped[SecurityGroup] = relationship()


class NatGateway(ProjectOwned, Stateful, Base):
    """Lets instances of private subnets out under one public address, and nobody in."""

    __tablename__ = "nat_gateways"

    vpc_id: Mapped[str] = f.field(f.Ref("networking.vpc"), label="VPC", references="vpcs.id", filterable=True)
    subnet_id: Mapped[str] = f.field(f.Ref("networking.subnet"), label="Subnet", references="subnets.id", filterable=True)
    elastic_ip_id: Mapped[str | None] = f.field(f.Ref("networking.elastic_ip"), label="Elastic IP", references="elastic_ips.id", nullable=True)
    public_ip: Mapped[str] = f.field(f.Line(15), label="Public address", default="")
    private_ip: Mapped[str] = f.field(f.Line(15), label="Private address", default="")

    vpc: Mapped[Vpc] = relationship()


class ElasticIp(ProjectOwned, Base):
    """A public address that stays the project's, whatever it leads to."""

    __tablename__ = "elastic_ips"

    public_ip: Mapped[str] = f.field(f.Line(15), label="Address", default="")
    interface_id: Mapped[str | None] = f.field(
        f.Ref("networking.network_interface"), label="Interface", references="network_interfaces.id", nullable=True
    )
    nat_gateway_id: Mapped[str | None] = f.field(f.Line(64), label="NAT gateway", nullable=True, index=True)


class VpcPeering(ProjectOwned, Stateful, Base):
    """A link between two VPCs, as one side has it; only routes that name it lead over it."""

    __tablename__ = "vpc_peerings"

    vpc_id: Mapped[str] = f.field(f.Ref("networking.vpc"), label="VPC", references="vpcs.id", filterable=True)
    peer_vpc_id: Mapped[str] = f.field(f.Ref("networking.vpc"), label="Peer VPC", references="vpcs.id", filterable=True)
    # What the host calls it; between two projects, each has a row with the same.
    link_id: Mapped[str] = f.field(f.Line(64), label="Link", exposed=False, index=True)
    is_linked: Mapped[bool] = f.field(f.Bool(), label="Linked on the host", default=False, exposed=False)

    vpc: Mapped[Vpc] = relationship(foreign_keys=[vpc_id])
    peer_vpc: Mapped[Vpc] = relationship(foreign_keys=[peer_vpc_id])


class FlowRecord(Base):
    """A connection that was seen beginning in a VPC, sampled."""

    __tablename__ = "flow_records"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    vpc_id: Mapped[str] = mapped_column(String(64))
    is_accepted: Mapped[bool]
    protocol: Mapped[str] = mapped_column(String(8))
    source: Mapped[str] = mapped_column(String(15))
    source_port: Mapped[int]
    destination: Mapped[str] = mapped_column(String(15))
    destination_port: Mapped[int]
    size_bytes: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_flow_records_vpc", "vpc_id", "id"), Index("ix_flow_records_at", "at"))


class RuleHits(Base):
    """How many connections each rule of a VPC has let through, as the worker last read it from the host: rule → count.

    `refused` are packets that bounds of connections have refused: bound → count.
    """

    __tablename__ = "vpc_rule_hits"

    vpc_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    read_at: Mapped[datetime] = mapped_column(UtcDateTime)
    connections: Mapped[dict[str, int]] = mapped_column(JsonColumn)
    refused: Mapped[dict[str, int]] = mapped_column(JsonColumn, server_default="{}", default=dict)
