"""nftables: rules go in as one transaction, and the kernel's own number of the last one says whether anybody else changed them."""

import json
import logging
import subprocess
from contextlib import nullcontext

from portal.engines.local.network.namespaces import inside
from portal.engines.local.network.netlink import NetfilterSocket, attributes
from portal.engines.ports import EngineError, EngineUnavailable

log = logging.getLogger("portal.engines.network")

TIMEOUT_S = 30
NFTABLES = 10 << 8
GET_GENERATION, NEW_GENERATION = NFTABLES | 16, NFTABLES | 15
GENERATION = 1


def apply(namespace: str, text: str) -> None:
    """Load rules into a namespace, all or none; an empty name is this process's own. Raises EngineError."""
    run(namespace, ["-f", "-"], text)


def run(namespace: str, arguments: list[str], given: str = "") -> str:
    """Run nft in a namespace; gives what it printed. Raises EngineError."""
    try:
        with inside(namespace) if namespace else nullcontext():
            done = subprocess.run(["nft", *arguments], input=given, text=True, capture_output=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise EngineUnavailable("nftables is not installed.") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError("nftables did not answer in time.") from error
    if done.returncode != 0:
        log.warning("nft %s: %s", " ".join(arguments), done.stderr.strip()[:2000])
        raise EngineError("nftables refused the rules; the worker's log has its words.")
    return done.stdout


def counters(namespace: str, table: str) -> dict[str, int]:
    """Packets that each named counter of a table has seen. Raises EngineError."""
    listed = json.loads(run(namespace, ["-j", "list", "counters", "table", "inet", table]))["nftables"]
    return {each["counter"]["name"]: each["counter"]["packets"] for each in listed if "counter" in each}


def members(namespace: str, table: str, name: str) -> list[str]:
    """The elements of a set from which they go by and by. Raises EngineError."""
    listed = json.loads(run(namespace, ["-j", "list", "set", "inet", table, name]))["nftables"]
    return [element["elem"]["val"] for each in listed if "set" in each for element in each["set"].get("elem", [])]


def tables(namespace: str) -> list[tuple[str, str]]:
    """Family and name of each table in a namespace. Raises EngineError."""
    listed = json.loads(run(namespace, ["-j", "list", "tables"]))["nftables"]
    return [(each["table"]["family"], each["table"]["name"]) for each in listed if "table" in each]


def chains(namespace: str, table: str) -> list[str]:
    """The chains of a table. Raises EngineError."""
    listed = json.loads(run(namespace, ["-j", "list", "chains", "inet"]))["nftables"]
    return [each["chain"]["name"] for each in listed if "chain" in each and each["chain"]["table"] == table]


def generation(namespace: str) -> int:
    """The number of the last change of any rule in a namespace, by whomever. Raises EngineError."""
    link = NetfilterSocket(namespace)
    try:
        link.send(GET_GENERATION)
        for kind, body in link.receive():
            if kind == NEW_GENERATION:
                return int.from_bytes(attributes(body)[GENERATION], "big")
    except TimeoutError as error:
        raise EngineError("nftables did not answer in time.") from error
    finally:
        link.close()
    raise EngineError("nftables does not say which generation its rules are.")
