"""Security groups: which connections may begin. A change of rules is in force once the VPC's revision is applied."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload, selectinload

from portal.engines.network_ports import Direction, IpProtocol, RuleSpec
from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import Conflict, NotFound
from portal.kernel.lookup import seen_by_name
from portal.kernel.resource import Column, ResourceType
from portal.networking.addresses import parse_address, parse_range
from portal.networking.changes import named_rows, vpc_locked, vpc_touch, wrong
from portal.networking.models import DIRECTIONS, PROTOCOLS, GroupMembership, NetworkInterface, SecurityGroup, SecurityGroupRule, Vpc
from portal.networking.rules import HIGHEST_PORT, HIGHEST_TYPE, TEMPLATES, check, covers, fingerprint, peer, sentence, traffic, warning
from portal.networking.subnets import VPC_FIELD
from portal.networking.vpc import applied, default_rules

MAX_RULES = 1000
WHOLE = 32
WAY = Annotated[str, f.FieldInfo(f.Choice(DIRECTIONS), "Direction", "Seen from the instance.")]
Protocol = Annotated[str, f.FieldInfo(f.Choice(PROTOCOLS), "Protocol", "-1 is every protocol.", aliases=("ip_protocol",))]
Port = f.Int(-(2**31), 2**31 - 1)
FromPort = Annotated[int | None, f.FieldInfo(Port, "From port", "0 to 65535, for tcp and udp.")]
ToPort = Annotated[int | None, f.FieldInfo(Port, "To port", "The same as the first if left empty.")]
IcmpType = Annotated[int | None, f.FieldInfo(Port, "ICMP type", "8 is ping; every type if left empty.")]
Cidr = Annotated[str, f.FieldInfo(f.Line(64), "Range", "0.0.0.0/0 is anywhere.", aliases=("cidr_ipv4",))]
Group = Annotated[str | None, f.FieldInfo(f.Ref("networking.security_group"), "Or members of", aliases=("referenced_sg_id", "referenced_group_id"))]
Words = Annotated[str, f.FieldInfo(f.Line(255), "Description")]
RuleId = Annotated[str, f.FieldInfo(f.Line(64), "Rule")]
TemplateName = Annotated[str, f.FieldInfo(f.Choice(tuple(TEMPLATES)), "Template")]
Source = Annotated[str, f.FieldInfo(f.Line(64), "From", "A range such as 192.0.2.0/24, an address, a group of the VPC, or anywhere.")]
IsEnabled = Annotated[bool | None, f.FieldInfo(f.Bool(), "Enabled")]


@operation(
    SecurityGroup, "create", label="Create", needs="write", effect=Effect.CREATE, icon="plus", along=lambda ctx, row, _: vpc_touch(ctx, row.vpc_id)
)
def security_group_create(
    ctx: Context, *, name: str, vpc: Annotated[Vpc, VPC_FIELD], description: str = "", tags: dict[str, str] | None = None
) -> SecurityGroup:
    """Create a security group; at first everything may go out and nothing in."""
    del ctx
    return SecurityGroup(name=name, vpc=vpc, vpc_id=vpc.id, description=description, tags=tags or {}, rules=default_rules())


@operation(SecurityGroup, "add_rule", label="Add a rule", needs="write", icon="plus", in_menu=False)
def security_group_add_rule(
    ctx: Context, group: SecurityGroup, *, direction: WAY = "ingress", protocol: Protocol = "tcp", from_port: FromPort = None, to_port: ToPort = None,
    icmp_type: IcmpType = None, cidr: Cidr = "", referenced_group: Group = None, description: Words = "",
) -> str:  # fmt: skip
    """Let something through."""
    vpc_touch(ctx, group.vpc_id)
    wanted = RuleSpec(
        "", Direction(direction), IpProtocol(protocol), from_port, to_port, icmp_type, cidr, group_named(ctx, group.vpc_id, referenced_group)
    )
    rule = _add(group, wanted, description)
    ctx.db.flush()
    return rule.id


@operation(SecurityGroup, "update_rule", label="Change a rule", needs="write", in_menu=False)
def security_group_update_rule(
    ctx: Context, group: SecurityGroup, *, rule_id: RuleId, from_port: FromPort = None, to_port: ToPort = None, icmp_type: IcmpType = None,
    cidr: Cidr = "", description: Annotated[str | None, f.FieldInfo(f.Line(255), "Description")] = None, is_enabled: IsEnabled = None,
) -> None:  # fmt: skip
    """Change the ports or the range of a rule, or switch it off; what is left empty stays."""
    vpc_touch(ctx, group.vpc_id)
    rule = _rule(group, rule_id)
    old = rule.spec()
    if from_port is not None and to_port is None and old.from_port == old.to_port:
        to_port = from_port
    wanted = checked(
        replace(
            old, rule_id="", from_port=old.from_port if from_port is None else from_port, to_port=old.to_port if to_port is None else to_port,
            icmp_type=old.icmp_type if icmp_type is None else icmp_type, cidr=cidr or old.cidr,
        )
    )  # fmt: skip
    _refuse_twice(group, wanted, but=rule)
    rule.from_port, rule.to_port, rule.icmp_type, rule.cidr, rule.fingerprint = (
        wanted.from_port, wanted.to_port, wanted.icmp_type, wanted.cidr, fingerprint(wanted)
    )  # fmt: skip
    rule.description = rule.description if description is None else description
    rule.is_enabled = rule.is_enabled if is_enabled is None else is_enabled
    ctx.db.flush()


@operation(SecurityGroup, "remove_rule", label="Remove a rule", needs="write", in_menu=False)
def security_group_remove_rule(ctx: Context, group: SecurityGroup, *, rule_id: RuleId) -> None:
    """Let something through no longer; connections that nothing else allows end."""
    vpc_touch(ctx, group.vpc_id)
    group.rules.remove(_rule(group, rule_id))
    ctx.db.flush()


@operation(SecurityGroup, "apply_template", label="Add usual rules", needs="write", icon="plus", in_menu=False)
def security_group_apply_template(
    ctx: Context, group: SecurityGroup, *, template: TemplateName, allowed_source: Source, direction: WAY = "ingress", description: Words = ""
) -> None:
    """Add the rules of a template that are not there yet."""
    vpc_touch(ctx, group.vpc_id)
    try:
        cidr, named = peer(allowed_source)
    except ValueError as error:
        raise wrong("allowed_source", f"{error}.") from None
    group_id = group_named(ctx, group.vpc_id, named, field="allowed_source")
    there = {rule.fingerprint for rule in group.rules}
    for rule in TEMPLATES[template].rules:
        wanted = checked(replace(rule, direction=Direction(direction), cidr=cidr, group_id=group_id), field="allowed_source")
        if fingerprint(wanted) not in there:
            _add(group, wanted, description or TEMPLATES[template].label)
    ctx.db.flush()


@operation(SecurityGroup, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True)
def security_group_delete(ctx: Context, group: SecurityGroup) -> None:
    """Delete a group that nothing is in and no rule refers to."""
    if group.is_default:
        raise Conflict(f"{group.name} is the default group of its VPC and goes with it.", details={"is_default": True})
    vpc_touch(ctx, group.vpc_id)
    members = select(GroupMembership.interface_id).where(GroupMembership.group_id == group.id)
    names = named_rows(ctx, NetworkInterface, NetworkInterface.id.in_(members))
    refers = select(SecurityGroupRule.group_id).where(SecurityGroupRule.referenced_group_id == group.id)
    names += [f"rules of {each}" for each in named_rows(ctx, SecurityGroup, SecurityGroup.id.in_(refers), SecurityGroup.id != group.id)]
    if names:
        raise Conflict(f"{group.name} is in use by {', '.join(names)}. Take it out there first.", details={"in_the_way": names})


def group_at_end(ctx: Context, group: SecurityGroup) -> None:
    """Its rules go with it."""
    group.rules.clear()
    ctx.db.flush()


def checked(rule: RuleSpec, *, field: str = "") -> RuleSpec:
    """A rule as it is kept. Raises InvalidRequest naming the field."""
    try:
        return check(rule)
    except ValueError as error:
        name, text = error.args
        raise wrong(field or name, text) from None


def _add(group: SecurityGroup, wanted: RuleSpec, description: str) -> SecurityGroupRule:
    wanted = checked(wanted)
    _refuse_twice(group, wanted)
    if len(group.rules) >= MAX_RULES:
        raise Conflict(
            f"{group.name} has {MAX_RULES:,} rules, the most that a group may have. Use ranges, or another group.", details={"limit": MAX_RULES}
        )
    rule = SecurityGroupRule(
        direction=wanted.direction.value, protocol=wanted.protocol.value, from_port=wanted.from_port, to_port=wanted.to_port, icmp_type=wanted.icmp_type,
        cidr=wanted.cidr, referenced_group_id=wanted.group_id or None, description=description, fingerprint=fingerprint(wanted), is_enabled=True,
    )  # fmt: skip
    group.rules.append(rule)
    return rule


def _refuse_twice(group: SecurityGroup, wanted: RuleSpec, *, but: SecurityGroupRule | None = None) -> None:
    twin = next((rule for rule in group.rules if rule is not but and rule.fingerprint == fingerprint(wanted)), None)
    if twin is not None:
        raise Conflict(f"{group.name} has this rule already: {twin.id}. {sentence(twin.spec())}", details={"rule_id": twin.id})


def _rule(group: SecurityGroup, rule_id: str) -> SecurityGroupRule:
    found = next((rule for rule in group.rules if rule.id == rule_id), None)
    if found is None:
        raise NotFound(f"There is no rule {rule_id[:64]} in {group.name}.")
    return found


def group_named(ctx: Context, vpc_id: str, value: str | None, *, field: str = "referenced_group") -> str:
    """The id of a group of this VPC that is named by id or name; empty for none. The VPC is locked. Raises InvalidRequest."""
    if not value:
        return ""
    return group_in(ctx, vpc_locked(ctx, vpc_id), value, field=field).id


def group_in(ctx: Context, vpc: Vpc, value: str, *, field: str) -> SecurityGroup:
    """A group of a VPC by its id or name. Raises InvalidRequest."""
    found: SecurityGroup | None = seen_by_name(ctx, ctx.registry.of(SecurityGroup), value, project_id=vpc.project_id)
    if found is None:
        raise wrong(field, f"There is no security group {value[:80]} here.")
    if found.vpc_id != vpc.id:
        raise wrong(field, f"{found.name} is a group of another VPC; groups work within one. Choose one of {vpc.name}.")
    return found


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, as a group's rules see it; `peer` is the address or range of the other side."""

    direction: Direction
    protocol: str
    port: int | None
    peer: str


def evaluate(ctx: Context, group: SecurityGroup, packet: Packet, names: Mapping[str, str]) -> tuple[RuleSpec | None, str]:
    """The rule of a group that lets something through, or none; and that in words. Raises InvalidRequest."""
    try:
        other = parse_range(packet.peer if "/" in packet.peer else f"{parse_address(packet.peer)}/32")
    except ValueError as error:
        raise wrong("peer", f"{error}.") from None
    highest = HIGHEST_TYPE if packet.protocol == "icmp" else HIGHEST_PORT
    if packet.port is None and packet.protocol != "icmp":
        raise wrong("port", "is required for tcp and udp.")
    if packet.port is not None and not 0 <= packet.port <= highest:
        raise wrong("port", f"must be from 0 to {highest}, not {packet.port}.")
    live = (NetworkInterface.deleted_at.is_(None), NetworkInterface.vpc_id == group.vpc_id, NetworkInterface.private_ip == str(other.network_address))
    memberships = select(GroupMembership.group_id).join(NetworkInterface, NetworkInterface.id == GroupMembership.interface_id).where(*live)
    groups = set(ctx.db.scalars(memberships)) if other.prefixlen == WHOLE else set()
    for rule in (each.spec() for each in group.rules if each.is_enabled):
        is_about = other.subnet_of(parse_range(rule.cidr)) if rule.cidr else rule.group_id in groups
        if rule.direction is packet.direction and covers(rule, packet.protocol, packet.port) and is_about:
            return rule, sentence(rule, names)
    way = "in from" if packet.direction is Direction.INGRESS else "out to"
    return None, f"No rule of {group.name} lets {traffic(packet.protocol, packet.port)} {way} {packet.peer}."


def rule_shown(rule: SecurityGroupRule, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A rule as API and console show it."""
    spec = rule.spec()
    return {
        "rule_id": rule.id, "direction": rule.direction, "protocol": rule.protocol, "from_port": rule.from_port, "to_port": rule.to_port,
        "icmp_type": rule.icmp_type, "cidr": rule.cidr or None, "referenced_sg_id": rule.referenced_group_id, "description": rule.description,
        "is_enabled": rule.is_enabled, "sentence": sentence(spec, names), "warning": warning(spec),
    }  # fmt: skip


def warnings(group: SecurityGroup) -> list[str]:
    """What is dangerous about a group's rules."""
    return [text for rule in group.rules if rule.is_enabled and (text := warning(rule.spec()))]


def _eager() -> list[Any]:
    return [joinedload(SecurityGroup.vpc), selectinload(SecurityGroup.rules)]


SECURITY_GROUP = ResourceType(
    SecurityGroup, service="networking", name="security_group", collection="security-groups", prefix="sg", label="Security group",
    plural="Security groups", icon="shield", summary="Rules about which connections may begin.",
    operations=[security_group_create, security_group_add_rule, security_group_apply_template, security_group_update_rule, security_group_remove_rule,
                security_group_delete, update_operation(SecurityGroup)],
    columns=[Column("name", "Name", sort="name"), Column("vpc_name", "VPC", css="md"), Column("rule_count", "Rules", css="num"),
             Column("status", "In force", css="lo"), Column("created_at", "Created", sort="created_at", css="lo")],
    quota={"security_groups": 1}, eager=_eager, aliases={"vpc": "vpc_id", "sg_id": "id"}, at_end=group_at_end, goes_with="networking.vpc", part_of=lambda v: (v.vpc,),
    show={"vpc_name": lambda v: v.vpc.name, "rule_count": lambda v: len(v.rules), "status": lambda v: applied(v.vpc),
          "rules": lambda v: [rule_shown(rule) for rule in v.rules],
          "warning": lambda v: " ".join(dict.fromkeys(warnings(v)))},
    describe=lambda v: (v.vpc.name, f"{len(v.rules)} rules"),
)  # fmt: skip
