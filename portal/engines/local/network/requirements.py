"""What this host must have before networks can be made on it."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = {"ip": "iproute2", "nft": "nftables", "dnsmasq": "dnsmasq-base"}
OLDEST_NFT = (1, 0, 2)
TUN = Path("/dev/net/tun")
TIMEOUT_S = 10
REMEDY = "Run the worker as root (with CAP_NET_ADMIN and CAP_SYS_ADMIN), with: apt-get install iproute2 nftables dnsmasq-base; then `make setup`"


def missing_piece() -> str:
    """The first thing that is not there, as a sentence; empty if all is."""
    if sys.platform != "linux":
        return "Networks of this engine need Linux."
    if os.geteuid() != 0:
        return "The portal's worker does not run as root, so it cannot make networks."
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is not installed (package {package})."
    if importlib.util.find_spec("pyroute2") is None:
        return "Python's netlink library (pyroute2) is not installed."
    if not TUN.exists():
        return "This host has no /dev/net/tun."
    return _what_nft_lacks() or _what_the_kernel_lacks()


@functools.cache
def _what_nft_lacks() -> str:
    said = subprocess.run(["nft", "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False).stdout
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", said)
    version = tuple(int(part) for part in found.groups()) if found else (0, 0, 0)
    if version < OLDEST_NFT:
        return f"nftables is too old: {'.'.join(map(str, OLDEST_NFT))} or newer is needed."
    return ""


TRIAL = """\
table bridge t {
  map guard { type ifname : verdict; }
  chain pre {
    type filter hook prerouting priority -300; policy drop;
    iifname vmap @guard
  }
}
table inet t {
  map m { type ifname . ipv4_addr : ipv4_addr; }
  chain nat {
    type nat hook prerouting priority -100; policy accept;
    dnat ip to iifname . ip daddr map @m
  }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct status dnat ct original ip daddr 10.0.0.0/8 accept
    rt ip nexthop 10.0.0.1 limit rate 1/second log group 1
  }
}
"""


@functools.cache
def _what_the_kernel_lacks() -> str:
    """Try it: a namespace of its own, and every kind of rule that is used."""
    command = ["unshare", "--net", "nft", "-f", "-"]
    try:
        done = subprocess.run(command, input=TRIAL, text=True, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "Network namespaces cannot be tried on this host."
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[:1]
        return f"The kernel does not give network namespaces with nftables for bridges, NAT and logging: {' '.join(said)[:200]}"
    return ""
