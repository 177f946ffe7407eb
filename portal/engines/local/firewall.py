"""Keeps guests away from what listens on this host for itself alone.

On user networking a guest's connections are made by its QEMU process, on the host; its gateway's address would lead to the host's loopback, where
databases and the portal itself trust their neighbours. Guests therefore run in a group of their own, and what that group sends over loopback is
refused, but for questions to a name server that lives there. So is what it sends to link-local addresses, where a cloud that this host itself lives in
hands out the host's credentials. Without these rules guests get no network at all.
"""

import grp
import logging
import os
import shutil
import subprocess

TABLE = "atonix_guests"
TIMEOUT_S = 10
# IPv4, IPv6, and where one large cloud has its metadata on IPv6.
LINK_LOCAL_V4 = "169.254.0.0/16"
LINK_LOCAL_V6 = "{ fe80::/10, fd00:ec2::254 }"

log = logging.getLogger("portal.engines.local")


def keep_off_loopback(group: str) -> str:
    """Set the rule, in place of an older one; gives the reason why it cannot be set, empty if it was."""
    program = shutil.which("nft")
    if os.geteuid() != 0:
        return "the portal's worker does not run as root, so guests cannot be kept away from this host's own services"
    if program is None:
        return "nftables is not installed, so guests cannot be kept away from this host's own services"
    try:
        gid = grp.getgrnam(group).gr_gid
        done = subprocess.run([program, "-f", "-"], input=ruleset(gid), text=True, capture_output=True, timeout=TIMEOUT_S, check=False)
    except KeyError:
        return f"there is no group {group}, so guests cannot be kept away from this host's own services"
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("nft: %s", error)
        return "nftables does not work here, so guests cannot be kept away from this host's own services"
    if done.returncode != 0:
        log.warning("nft: %s", done.stderr.strip())
        return "nftables refuses the rule that keeps guests away from this host's own services"
    return ""


def ruleset(gid: int) -> str:
    """The table as nft reads it; loaded as one transaction, so that there is no moment without it."""
    return f"""\
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain output {{
    type filter hook output priority filter; policy accept;
    meta skgid {gid} meta l4proto {{ tcp, udp }} th dport 53 accept
    meta skgid {gid} oifname "lo" counter reject
    meta skgid {gid} ip daddr {LINK_LOCAL_V4} counter reject
    meta skgid {gid} ip6 daddr {LINK_LOCAL_V6} counter reject
  }}
}}
"""
