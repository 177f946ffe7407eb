"""The host's side of the external network: one interface, what may come in through it, and, only where that is asked for, the way on to the Internet."""

import logging
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from portal.engines.local.network import nft
from portal.engines.local.network.filter import LINK_LOCAL
from portal.engines.local.network.leftovers import clear
from portal.engines.local.network.links import Links
from portal.engines.local.network.names import EXTERNAL_BRIDGE, HOST_END, Installation, mac
from portal.engines.ports import EngineError, EngineRefused

log = logging.getLogger("portal.engines.network")

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass(frozen=True, slots=True)
class External:
    """The external network of one installation."""

    installation: Installation
    cidr: IPv4Network
    has_nat: bool
    # The host's rules as they were set, and as the kernel listed them then.
    kept: Path

    @property
    def host(self) -> IPv4Address:
        """The host's own address, by which everything else is reached."""
        return self.cidr[1]

    def ensure(self) -> None:
        """Make the host's side. Raises EngineError, EngineRefused where somebody else has these addresses."""
        name = self.installation.host_link
        # Before the link: guests never see the host without its rules.
        nft.apply("", self.rules())
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        self.kept.write_text(self._as_kept())
        with Links(self.installation.fabric) as fabric, Links("") as links:
            self._refuse_overlap(links)
            if not fabric.has(HOST_END):
                # Its other end is in a fabric that somebody took the name of, and that goes on for as long as guests hold its taps.
                links.remove(name)
            links.ensure_veth(name, HOST_END, self.installation.fabric, (mac(name), mac(name, HOST_END)))
            links.ensure_label(name, self.installation.folder)
            links.ensure_address(name, f"{self.host}/{self.cidr.prefixlen}")
            links.ensure_up(name)
        with Links(self.installation.fabric) as links:
            links.ensure_bridge(EXTERNAL_BRIDGE)
            links.ensure_in_bridge(HOST_END, EXTERNAL_BRIDGE)
            links.ensure_up(HOST_END)
        if self.has_nat and FORWARDING.read_text().strip() != "1":
            FORWARDING.write_text("1")

    def _refuse_overlap(self, links: Links) -> None:
        known = {link.index: link for link in links.all().values()}
        for index, text in links.addresses():
            taken, link = IPv4Interface(text).network, known.get(index)
            if link is None or link.name == self.installation.host_link or not taken.overlaps(self.cidr) or clear(links, link):
                continue
            raise EngineRefused(f"This host already uses {taken}. Choose another NETWORK_EXTERNAL_CIDR than {self.cidr}.")

    def remove(self) -> None:
        """Take it away."""
        with Links("") as links:
            links.remove(self.installation.host_link)
        table = self.installation.host_table
        nft.apply("", f"table inet {table} {{\n}}\ndelete table inet {table}\n")

    def is_right(self) -> bool:
        """Whether link, address and rules are there, and the other end in the fabric."""
        try:
            with Links("") as links:
                link = links.find(self.installation.host_link)
                if link is None or not link.is_up or (link.index, f"{self.host}/{self.cidr.prefixlen}") not in links.addresses():
                    return False
            with Links(self.installation.fabric) as fabric:
                if not (fabric.has(HOST_END) and fabric.has(EXTERNAL_BRIDGE)):
                    return False
            if not self.kept.exists() or self._as_kept() != self.kept.read_text():
                return False
        except EngineError as error:
            log.info("the host's side of the external network: %s", error)
            return False
        return not self.has_nat or FORWARDING.read_text().strip() == "1"

    def _as_kept(self) -> str:
        """What is wanted, and the host's table as it is, without what it counted."""
        return self.rules() + nft.run("", ["--stateless", "list", "table", "inet", self.installation.host_table])

    def rules(self) -> str:
        """The host's table as nft reads it: guests answer, but do not call this host; NAT only if asked for."""
        table, link = self.installation.host_table, self.installation.host_link
        onward = "" if self.has_nat else f'    iifname "{link}" oifname != "{link}" ct state new drop\n'
        nat = (
            f'  chain post {{\n    type nat hook postrouting priority 100; policy accept;\n    ip saddr {self.cidr} oifname != "{link}" masquerade\n  }}\n'
            if self.has_nat
            else ""
        )
        return f"""\
table inet {table} {{
}}
delete table inet {table}
table inet {table} {{
  chain input {{
    type filter hook input priority -5; policy accept;
    iifname "{link}" ct state established,related accept
    iifname "{link}" counter drop
  }}
  chain forward {{
    type filter hook forward priority -5; policy accept;
    iifname "{link}" ip daddr {LINK_LOCAL} drop
    iifname "{link}" ip saddr != {self.cidr} drop
{onward}  }}
{nat}}}
"""
