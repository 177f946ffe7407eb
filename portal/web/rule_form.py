"""The line in which people write a rule: what, with whom and which way, as text; and the tab of a security group that has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flask import request
from sqlalchemy import select

from portal.engines.network_ports import Direction, IpProtocol, RuleSpec
from portal.kernel.authz import reach as may_see
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest
from portal.networking.addresses import ANYWHERE
from portal.networking.hits import hits_of
from portal.networking.models import GroupMembership, NetworkInterface, SecurityGroup, SecurityGroupRule
from portal.networking.rules import TEMPLATES, check, peer, sentence, warning, what
from portal.networking.security_groups import SECURITY_GROUP, security_group_add_rule
from portal.networking.view import owners_of, rules_shown
from portal.web.derived import why_not
from portal.web.forms import Option

MEMBERS = 100
OTHERS = (Option("tcp", "Other TCP ports"), Option("udp", "Other UDP ports"), Option("icmp", "ICMP of a type, or any"), Option("-1", "Everything"))
# Where the form says what operations call otherwise.
FIELDS: Mapping[str, str] = {
    "from_port": "ports", "to_port": "ports", "icmp_type": "ports", "cidr": "whom", "referenced_group": "whom", "allowed_source": "whom",
    "protocol": "service", "template": "service", "direction": "direction", "description": "description",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Typed:
    """The line as it was typed."""

    direction: str = "ingress"
    service: str = "ssh"
    ports: str = ""
    whom: str = ""
    description: str = ""

    @classmethod
    def read(cls, given: Mapping[str, str]) -> "Typed":
        """From a form."""
        text = {name: given.get(name, "").replace("\x00", "").strip()[:255] for name in ("direction", "service", "ports", "whom", "description")}
        return cls(**{**text, "direction": text["direction"] if text["direction"] in ("ingress", "egress") else "ingress"})

    @classmethod
    def of(cls, rule: SecurityGroupRule) -> "Typed":
        """A rule that is there, as it would be typed."""
        low, high = rule.from_port, rule.to_port
        ports = "" if rule.icmp_type is None and low is None else str(rule.icmp_type if low is None else low if low == high else f"{low}-{high}")
        return cls(rule.direction, rule.protocol, ports, "anywhere" if rule.cidr == ANYWHERE else rule.cidr, rule.description)

    def specs(self) -> Sequence[RuleSpec]:
        """The rules that it stands for; members of a group by the name that was typed. Raises InvalidRequest naming the field."""
        if not self.whom:
            raise InvalidRequest.fields({"whom": ["is needed: a range, an address, a group or anywhere."]})
        try:
            cidr, group = peer(self.whom)
        except ValueError as error:
            raise InvalidRequest.fields({"whom": [f"{error}."]}) from None
        if self.service in TEMPLATES:
            kinds = TEMPLATES[self.service].rules
        else:
            low, high = self._range()
            is_icmp = self.service == IpProtocol.ICMP
            protocol = IpProtocol(self.service) if self.service in set(IpProtocol) else IpProtocol.TCP
            kinds = [RuleSpec("", Direction.INGRESS, protocol, *((None, None, low) if is_icmp else (low, high)))]
        return [_sound(replace(rule, direction=Direction(self.direction), cidr=cidr, group_id=group)) for rule in kinds]

    def _range(self) -> tuple[int | None, int | None]:
        """`443`, `8000-8100`, or nothing."""
        parts = [part.strip() for part in self.ports.split("-")] if self.ports else []
        if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):  # noqa: PLR2004 - from, to
            raise InvalidRequest.fields({"ports": [f"must be a number such as 443, or a range such as 8000-8100, not {self.ports[:40]}."]})
        return (int(parts[0]), int(parts[-1])) if parts else (None, None)


def _sound(rule: RuleSpec) -> RuleSpec:
    try:
        return check(rule)
    except ValueError as error:
        name, text = error.args
        raise InvalidRequest.fields({FIELDS.get(name, name): [text]}) from None


def tab(ctx: Context, group: SecurityGroup) -> Mapping[str, Any]:
    """What the tab of rules shows."""
    shown, edited = rules_shown(ctx, group), request.args.get("edit", "")
    users = select(NetworkInterface).join(GroupMembership, GroupMembership.interface_id == NetworkInterface.id)
    mine = (GroupMembership.group_id == group.id, NetworkInterface.deleted_at.is_(None))
    seen = may_see(ctx, "networking.network_interface.read").rows(NetworkInterface)
    members = ctx.db.scalars(users.where(*mine, seen).order_by(NetworkInterface.name).limit(MEMBERS)).all()
    groups = select(SecurityGroup.id, SecurityGroup.name).where(SecurityGroup.vpc_id == group.vpc_id, SecurityGroup.deleted_at.is_(None))
    others = ctx.db.execute(groups.where(may_see(ctx, f"{SECURITY_GROUP.key}.read").rows(SecurityGroup)).order_by(SecurityGroup.name)).all()
    rule = next((each for each in group.rules if each.id == edited), None)
    return {
        "rules": {way: [each for each in shown if each["direction"] == way] for way in ("ingress", "egress")}, "read_at": hits_of(ctx.db, group.vpc_id).read_at,
        "usual": [Option(each.name, f"{each.label} ({', '.join(what(rule) for rule in each.rules)})" if len(each.rules) > 1 else each.label)
                  for each in TEMPLATES.values()],
        "others": OTHERS, "groups": others, "members": members, "owners": owners_of(ctx, members), "typed": Typed(), "errors": {}, "message": "",
        "why_not": why_not(ctx, SECURITY_GROUP, security_group_add_rule, group), "editing": edited if rule else "", "edited": Typed.of(rule) if rule else None,
        "is_applying": group.vpc.applied_revision < group.vpc.desired_revision, "said": "", "reading": (),
    }  # fmt: skip


def reading_of(typed: Typed) -> Sequence[tuple[str, str]]:
    """(sentence, warning) of each rule; nothing as long as it makes no sense."""
    try:
        return [(sentence(rule), warning(rule)) for rule in typed.specs()]
    except InvalidRequest:
        return ()
