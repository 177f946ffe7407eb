"""Rules: refused in words that name the field, read in plain language, and warned of where they open a machine to the world."""

import pytest

from portal.engines.network_ports import Direction, IpProtocol, RuleSpec
from portal.networking import rules as r

IN, OUT, TCP, UDP, ICMP, ALL = Direction.INGRESS, Direction.EGRESS, IpProtocol.TCP, IpProtocol.UDP, IpProtocol.ICMP, IpProtocol.ALL


@pytest.mark.parametrize(
    ("rule", "field", "says"),
    [
        (RuleSpec("", IN, TCP, 70_000, 70_000, cidr="0.0.0.0/0"), "from_port", "0 to 65535, not 70000"), (RuleSpec("", IN, TCP, -1, 5, cidr="0.0.0.0/0"), "from_port", "-1"),
        (RuleSpec("", IN, TCP, 90, 80, cidr="0.0.0.0/0"), "to_port", "90 to 80 is no range"), (RuleSpec("", IN, TCP, cidr="0.0.0.0/0"), "from_port", "required"),
        (RuleSpec("", IN, ALL, 80, cidr="0.0.0.0/0"), "from_port", "only for tcp and udp"), (RuleSpec("", IN, ICMP, None, 8, cidr="0.0.0.0/0"), "to_port", "icmp_type"),
        (RuleSpec("", IN, ICMP, icmp_type=256, cidr="0.0.0.0/0"), "icmp_type", "256"), (RuleSpec("", IN, TCP, 1, 1, 8, cidr="0.0.0.0/0"), "icmp_type", "only for icmp"),
        (RuleSpec("", IN, ALL, icmp_type=8, cidr="0.0.0.0/0"), "icmp_type", "only for icmp"), (RuleSpec("", IN, TCP, 80, 80), "cidr", "exactly one"),
        (RuleSpec("", IN, TCP, 80, 80, cidr="10.0.0.0/8", group_id="sg-1"), "cidr", "exactly one"), (RuleSpec("", IN, TCP, 80, 80, cidr="10.0.0.1/8"), "cidr", "did you mean"),
        (RuleSpec("", IN, TCP, 80, 80, cidr="::/0"), "cidr", "IPv6"), (RuleSpec("", IN, TCP, 80, 80, cidr="10.0.0.0/33"), "cidr", "/33"),
    ],
)  # fmt: skip
def test_what_is_no_rule_says_why(rule: RuleSpec, field: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        r.check(rule)
    assert refused.value.args[0] == field
    assert says in refused.value.args[1]


def test_one_port_is_enough() -> None:
    assert r.check(RuleSpec("", IN, TCP, 80, cidr="10.0.0.0/8")).to_port == 80
    assert r.check(RuleSpec("", IN, UDP, None, 53, cidr="10.0.0.0/8")).from_port == 53


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (RuleSpec("", IN, TCP, 22, 22, cidr="0.0.0.0/0"), "Lets SSH (TCP port 22) in from anywhere."), (RuleSpec("", OUT, ALL, cidr="0.0.0.0/0"), "Lets everything out to anywhere."),
        (RuleSpec("", IN, TCP, 0, 65535, group_id="sg-1"), "Lets every TCP port in from members of web."), (RuleSpec("", IN, UDP, 1, 9, cidr="10.0.0.0/8"), "Lets UDP ports 1 to 9 in from 10.0.0.0/8."),
        (RuleSpec("", IN, ICMP, icmp_type=8, cidr="10.0.0.0/8"), "Lets ICMP type 8 (ping) in from 10.0.0.0/8."), (RuleSpec("", IN, ICMP, cidr="10.0.0.0/8"), "Lets ICMP of every type in from 10.0.0.0/8."),
        (RuleSpec("", IN, ICMP, icmp_type=99, cidr="10.0.0.0/8"), "Lets ICMP type 99 in from 10.0.0.0/8."), (RuleSpec("", IN, TCP, 8080, 8080, cidr="10.0.0.0/8"), "Lets TCP port 8080 in from 10.0.0.0/8."),
    ],
)  # fmt: skip
def test_rules_in_plain_language(rule: RuleSpec, says: str) -> None:
    assert r.sentence(rule, {"sg-1": "web"}) == says


def test_doors_to_the_world_are_warned_of() -> None:
    warned = {port for port in range(65_536) if r.warning(RuleSpec("", IN, TCP, port, port, cidr="0.0.0.0/0"))}
    assert warned == {22, 23, 445, 1433, 2375, 2376, 3306, 3389, 5432, 5900, 5985, 5986, 6379, 6443, 9200, 11211, 27017}
    assert "SSH, RDP" not in r.warning(RuleSpec("", IN, TCP, 20, 30, cidr="0.0.0.0/0"))
    assert "every port" in r.warning(RuleSpec("", IN, ALL, cidr="0.0.0.0/0"))
    # The world in parts is the world.
    for part in ("0.0.0.0/1", "128.0.0.0/1", "64.0.0.0/2", "8.0.0.0/8"):
        assert f"large part of the internet ({part})" in r.warning(RuleSpec("", IN, TCP, 22, 22, cidr=part))
    for few in ("10.0.0.0/8", "192.0.2.0/24", "8.8.0.0/16"):
        assert r.warning(RuleSpec("", IN, TCP, 22, 22, cidr=few)) == ""
    assert r.warning(RuleSpec("", IN, TCP, 22, 22, group_id="sg-1")) == ""
    for harmless in (
        RuleSpec("", OUT, ALL, cidr="0.0.0.0/0"),
        RuleSpec("", IN, TCP, 22, 22, cidr="10.0.0.0/8"),
        RuleSpec("", IN, UDP, 22, 22, cidr="0.0.0.0/0"),
    ):
        assert r.warning(harmless) == ""


def test_templates_are_sound_rules() -> None:
    for template in r.TEMPLATES.values():
        for rule in template.rules:
            sound = RuleSpec("", rule.direction, rule.protocol, rule.from_port, rule.to_port, rule.icmp_type, cidr="10.0.0.0/8")
            assert r.check(sound) == sound
    assert {"ssh", "http", "https", "postgresql", "mysql", "rdp", "dns", "ping"} <= set(r.TEMPLATES)
