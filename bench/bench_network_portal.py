"""What networks cost as a member sees it: from a request of the API over the job until the host's packets go as asked, with few and with many other VPCs.

`python -m bench.bench_network_portal [OTHERS]`; needs root. Web server and worker are processes of their own, with the settings of an installation.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from sqlalchemy import update

from bench.installation import Installation, installation, web_server
from portal.catalogue import build_registry
from portal.engines.local.network.engine import LocalNetwork
from portal.kernel.db import transaction
from portal.kernel.quota import Quota
from portal.networking.desired import desired_state
from portal.settings import Settings
from tests.support.network import Guest, free_external, why_no_networks
from tests.support.processes import portal_process
from tests.support.servers import until

OTHERS, ROUNDS, WITHIN_S = 100, 9, 60
GOALS_MS = {"VPC with 2 subnets": 500, "port": 200, "rule effective": 1000}


@dataclass
class Client:
    """Somebody with a token."""

    made: Installation

    def call(self, method: str, path: str, **body: Any) -> Any:
        """Ask the API; its answer."""
        link = HTTPConnection("127.0.0.1", self.made.settings.portal_port, timeout=WITHIN_S)
        headers = {"Authorization": f"Token {self.made.token}", "Content-Type": "application/json"}
        link.request(method, f"/api/v1/networking{path}", json.dumps(body) if body else None, headers)
        answer = link.getresponse()
        text = answer.read()
        link.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
        return json.loads(text) if text else None

    def applied(self, vpc_id: str) -> None:
        """Wait until what is desired of a VPC is in force."""
        until(lambda: self.call("GET", f"/vpcs/{vpc_id}")["applied"] == "available", within_s=WITHIN_S, what="the VPC is in force", every_s=0.002)

    def vpc(self, name: str, *, cidr: str = "10.0.0.0/16") -> str:
        """A VPC with two subnets, on the host."""
        vpc_id = self.call("POST", "/vpcs", name=name, cidr_block=cidr)["id"]
        for number in (1, 2):
            self.call("POST", f"/vpcs/{vpc_id}/subnets", name=f"{name}-s{number}", cidr_block=f"10.0.{number}.0/24")
        self.applied(vpc_id)
        return str(vpc_id)


def in_ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def measure(client: Client, engine: LocalNetwork, word: str) -> None:
    """A round of everything."""
    found: dict[str, list[float]] = {"VPC with 2 subnets": [], "port": [], "rule effective": []}
    for number in range(ROUNDS):
        found["VPC with 2 subnets"].append(in_ms(lambda number=number: client.vpc(f"{word}-{number}")))  # type: ignore[misc]
    vpc_id = client.vpc(f"{word}-guests")
    group = client.call("GET", f"/vpcs/{vpc_id}")["default_group_id"]
    for rule in client.call("GET", f"/security-groups/{group}/rules?direction=ingress")["results"]:
        client.call("DELETE", f"/security-groups/{group}/rules/{rule['rule_id']}")

    def port(number: int) -> None:
        client.call("POST", "/network-interfaces", name=f"{word}-n{number}", subnet=f"{word}-guests-s{1 + number % 2}")
        client.applied(vpc_id)

    for number in range(ROUNDS):
        found["port"].append(in_ms(lambda number=number: port(number)))  # type: ignore[misc]
    with ExitStack() as guests:
        with client.made.sessions() as session:
            state = desired_state(session, build_registry(), vpc_id)
        assert state is not None
        here, there = (Guest(engine, state.spec, each).configure() for each in state.spec.ports[:2])
        for each in (here, there):
            guests.callback(each.close)
        for number in range(8001, 8001 + ROUNDS):
            there.serve(number)

            def opened(number: int = number) -> None:
                client.call("POST", f"/security-groups/{group}/rules", from_port=number, cidr="10.0.0.0/16")
                while not here.hears(there.port.address, number, 0.05):
                    pass

            found["rule effective"].append(in_ms(opened))
    for what, figures in found.items():
        print(f"  {what:<30} median {statistics.median(figures):>7.1f} ms   worst {max(figures):>7.1f} ms   (goal: {GOALS_MS[what]} ms)")


def main(others: int = OTHERS) -> None:
    """Measure with one other VPC and with many."""
    if why := why_no_networks():
        print(f"no networks on this machine: {why}")
        return
    with tempfile.TemporaryDirectory(prefix="portal-bench-") as directory, installation(Path(directory), instances=1) as plain, ExitStack() as stack:
        given = {"engine_network": "local", "network_external_cidr": free_external(), "job_poll_ms": Settings.model_fields["job_poll_ms"].default}
        made = replace(plain, settings=plain.settings.model_copy(update=given))
        with made.sessions() as session, transaction(session):
            session.execute(update(Quota).values(limit=None))
        engine = LocalNetwork(made.settings.data_dir, external_cidr=made.settings.network_external_cidr)
        stack.callback(engine.close)
        stack.callback(lambda: [engine.remove_vpc(vpc_id) for vpc_id in engine.vpcs()])
        with portal_process(made.settings, "worker"), web_server(made):
            client, there = Client(made), 0
            for count in (1, others):
                for number in range(there, count):
                    client.vpc(f"other-{number}")
                there = count + ROUNDS + 1
                print(f"with {count} other VPC{'s' if count > 1 else ''} of 2 subnets")
                measure(client, engine, f"round-{count}")


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:2]))
