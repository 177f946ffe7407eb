"""VPCs: private networks of a project, each with its own range, router, name server and metadata service."""

from collections.abc import Mapping
from typing import Annotated, Any

from sqlalchemy import select

from portal.engines.network_ports import Direction, IpProtocol, RuleSpec
from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import Effect, lock_operations, operation, update_operation
from portal.kernel.errors import Conflict
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.resource import Column, ResourceType
from portal.kernel.rows import insert_along
from portal.networking import apply, ipam
from portal.networking.addresses import ANYWHERE, check_domain, check_server, listed, parse_vpc_range
from portal.networking.changes import refuse_without_networks, vpc_again, vpc_touch, wrong
from portal.networking.leaving import instances_in, refused_in, things_in, vpc_emptied, vpc_leaving
from portal.networking.models import (
    TRAFFIC,
    RouteTable,
    SecurityGroup,
    SecurityGroupRule,
    Vpc,
)
from portal.networking.rules import fingerprint

LIFECYCLE = Lifecycle(
    "pending",
    {
        "pending": frozenset({"available", "failed"}),
        "available": frozenset({"deleting", "failed"}),
        "failed": frozenset({"available", "pending", "deleting"}),
        "deleting": frozenset({"deleted", "failed"}),
    },
    transient=frozenset({"pending", "deleting"}),
    ended=frozenset({"deleted"}),
    tones={"failed": "bad"},
)
LOCKED = (
    "Refuse every change until it is unlocked: of the VPC, and of its subnets, addresses kept, groups and rules, tables and routes, gateways, "
    "interfaces and peerings. Instances come and go, with the interface that is theirs."
)
# Where flow logs go.
PORTAL = "portal"
Force = Annotated[bool, f.FieldInfo(f.Bool(), "Delete all of it", "With subnets, groups, route tables, gateways, interfaces and peerings in it.")]
Enabled = Annotated[bool, f.FieldInfo(f.Bool(), "Flow log", "Record connections as they begin, sampled.")]
Destination = Annotated[str, f.FieldInfo(f.Choice((PORTAL,)), "Kept by", "The portal, for its page and the API; files and buckets are not there.")]
Traffic = Annotated[str, f.FieldInfo(f.Choice(TRAFFIC), "Connections", "Those that were let through, those that were refused, or all.")]


@operation(Vpc, "create", label="Create", needs="write", effect=Effect.CREATE, icon="plus", steps=apply.APPLY, settles="available", fails="failed",
           along=lambda ctx, vpc, _: furnish(ctx, vpc), follow=vpc_again)  # fmt: skip
def vpc_create(
    ctx: Context, *, name: str, cidr_block: str, region: str = "local", enable_dns_hostnames: bool = True, enable_dns_support: bool = True,
    enable_network_address_translation: bool = True, dns_servers: str = "", search_domains: str = "", ntp_servers: str = "", mtu: int | None = None,
    description: str = "", tags: dict[str, str] | None = None,
) -> Vpc:  # fmt: skip
    """Create a VPC with a default security group and a main route table."""
    refuse_without_networks(ctx)
    try:
        block = parse_vpc_range(cidr_block)
    except ValueError as error:
        raise wrong("cidr_block", f"{error}.") from None
    told = {"dns_servers": dns_servers, "ntp_servers": ntp_servers, "search_domains": search_domains}
    check_told(told)
    return Vpc(
        name=name, cidr_block=str(block), region=region, enable_dns_hostnames=enable_dns_hostnames, enable_dns_support=enable_dns_support,
        enable_network_address_translation=enable_network_address_translation, mtu=mtu, **told, description=description, tags=tags or {},
    )  # fmt: skip


def check_told(told: Mapping[str, Any]) -> None:
    """Raise InvalidRequest unless these are lists, of at most four addresses or of at most six domains, separated by commas."""
    for field, check, most in (("dns_servers", check_server, 4), ("ntp_servers", check_server, 4), ("search_domains", check_domain, 6)):
        values = listed(str(told.get(field, "")))
        try:
            for each in values:
                check(each)
        except ValueError as error:
            raise wrong(field, f"{error}.") from None
        if len(values) > most:
            raise wrong(field, f"takes at most {most}.")


def furnish(ctx: Context, vpc: Vpc, *, prefix: str = "") -> None:
    """Make what a VPC cannot be without: a default group and a main route table."""
    prefix = prefix or f"{vpc.name[:200]}-"
    group = SecurityGroup(
        name=free_name(ctx, SecurityGroup, f"{prefix}default", vpc),
        description=f"What is in no other group of {vpc.name}.",
        vpc_id=vpc.id,
        is_default=True,
    )
    group.rules = default_rules(vpc.cidr_block)
    table = RouteTable(name=free_name(ctx, RouteTable, f"{prefix}main", vpc), vpc_id=vpc.id, is_main=True)
    insert_along(ctx, group, vpc.project_id)
    insert_along(ctx, table, vpc.project_id)
    vpc.default_group_id, vpc.main_route_table_id = group.id, table.id
    ctx.db.flush()


def default_rules(inside: str = "") -> list[SecurityGroupRule]:
    """Everything may go out; in a default group, everything inside the VPC may come in."""
    rules = [RuleSpec("", Direction.EGRESS, IpProtocol.ALL, cidr=ANYWHERE)]
    if inside:
        rules.append(RuleSpec("", Direction.INGRESS, IpProtocol.ALL, cidr=inside))
    return [
        SecurityGroupRule(direction=rule.direction.value, protocol=rule.protocol.value, cidr=rule.cidr, fingerprint=fingerprint(rule))
        for rule in rules
    ]


def free_name(ctx: Context, model: Any, wanted: str, vpc: Vpc, *, mark: str = "") -> str:
    """The name that is wanted for what comes with a VPC, or one with the mark of an id, the VPC's own unless given, if somebody has it."""
    taken = select(model.id).where(model.project_id == vpc.project_id, model.name == wanted, model.deleted_at.is_(None))
    return wanted if ctx.db.scalar(taken) is None else f"{wanted}-{(mark or vpc.id).rpartition('-')[2]}"


@operation(Vpc, "apply", label="Update network", needs="platform", steps=apply.APPLY, settles="available", fails="failed", internal=True, while_locked=True, urgent=True,
           follow=vpc_again)  # fmt: skip
def vpc_apply(ctx: Context, vpc: Vpc) -> None:
    """Bring the host to the desired revision."""
    del ctx, vpc


@operation(Vpc, "configure_flow_logs", label="Flow log", needs="write", when={"available", "pending", "failed"})
def vpc_configure_flow_logs(ctx: Context, vpc: Vpc, *, enabled: Enabled, traffic_type: Traffic = "all", destination: Destination = PORTAL) -> None:
    """Switch the flow log on or off."""
    del destination
    vpc.flow_logs_enabled, vpc.flow_logs_traffic = enabled, traffic_type
    vpc_touch(ctx, vpc.id)


@operation(Vpc, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, steps=apply.REMOVE,
           when={"available", "failed"}, holds="deleting", settles="deleted", fails="failed")  # fmt: skip
def vpc_delete(ctx: Context, vpc: Vpc, *, force: Force = False) -> None:
    """Delete a VPC; what is in the way is named, and goes with it if all of it is to go. Instances have to be terminated first."""
    guests = instances_in(ctx, vpc)
    things = [] if force else things_in(ctx, vpc)
    if guests or things:
        way_out = "Terminate the instances first." if guests else 'Delete these first, or choose "Delete all of it".'
        raise Conflict(f"{vpc.name} is in use: {', '.join([*guests, *things])}. {way_out}", details={"in_the_way": [*guests, *things]})
    if reasons := refused_in(ctx, vpc):
        raise Conflict(f"{vpc.name} cannot be deleted with what is in it. {' '.join(reasons)}", details={"in_the_way": reasons})


def vpc_at_end(ctx: Context, vpc: Vpc) -> None:
    """End everything in a VPC that is gone, and give its address outside back."""
    vpc_emptied(ctx, vpc)
    ipam.release_of(ctx.db, vpc.id)
    vpc.uplink_address = ""


def applied(vpc: Vpc | None) -> str:
    """Whether what is desired of a VPC is in force: available, applying or failed."""
    if vpc is None:
        return "detached"
    return "failed" if vpc.state == "failed" else "applying" if vpc.applied_revision < vpc.desired_revision else "available"


def _check_update(ctx: Context, vpc: Vpc, changes: dict[str, Any]) -> None:
    del ctx, vpc
    check_told(changes)


def _touch(ctx: Context, vpc: Vpc, _: Mapping[str, Any]) -> None:
    vpc_touch(ctx, vpc.id)


VPC = ResourceType(
    Vpc, service="networking", name="vpc", collection="vpcs", prefix="vpc", label="VPC", plural="VPCs", icon="net",
    summary="Private networks.",
    operations=[vpc_create, vpc_configure_flow_logs, vpc_delete, update_operation(Vpc, before=_check_update, along=_touch), *lock_operations(Vpc, LOCKED), vpc_apply],
    columns=[Column("name", "Name", sort="name"), Column("state", "State", sort="state"), Column("cidr_block", "Range", css="mono", sort="cidr_block"),
             Column("applied", "In force", css="md"), Column("uplink_address", "Outbound address", css="mono lo", hidden=True),
             Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE, quota={"networks": 1}, search=("name", "id", "cidr_block"),
    show={"applied": applied, "flow_logs_destination": lambda v: PORTAL if v.flow_logs_enabled else None}, aliases={"status": "state"},
    at_end=vpc_at_end, leaving=vpc_leaving, describe=lambda v: (v.cidr_block, v.state), usable=lambda v: v.state not in {"deleting", "deleted"},
)  # fmt: skip
