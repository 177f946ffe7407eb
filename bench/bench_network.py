"""What networks cost on this host: a VPC, a port, a change of rules until it is effective, a large group, all with few and with many other VPCs.

`python -m bench.bench_network [OTHERS]`; needs root. Everything is made in namespaces of its own and removed.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from portal.engines.local.network import filter as rules
from portal.engines.network_ports import GroupSpec, NetworkEngine, VpcSpec
from tests.support.network import OUT, Guest, NetworkHost, local_network_host, port, rule, why_no_networks, with_ports

OTHERS, ROUNDS, RULES = 100, 9, 1000
LIMITS_MS = {"VPC with 2 subnets": 500, "port": 200, "rule effective": 1000, "1,000 rules, compile": 200}


def in_ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def show(what: str, found: list[float]) -> None:
    limit = LIMITS_MS.get(what)
    print(f"  {what:<44} median {statistics.median(found):>7.1f} ms   worst {max(found):>7.1f} ms{f'   (goal: {limit} ms)' if limit else ''}")


@contextmanager
def two_guests(engine: NetworkEngine, spec: VpcSpec) -> Iterator[list[Guest]]:
    guests = [Guest(engine, spec, each).configure() for each in spec.ports]
    try:
        yield guests
    finally:
        for guest in guests:
            guest.close()


def effective(engine: NetworkEngine, spec: VpcSpec, guest: Guest, target: str, number: int) -> float:
    """From the call to the first connection that the new rule lets through."""
    opened = replace(spec, groups=[GroupSpec("sg-web", [*spec.groups[0].rules, rule("rule-new", port=number)])])
    began = time.perf_counter()
    engine.ensure_vpc(opened)
    while not guest.hears(target, number, 0.05):
        pass
    return 1000 * (time.perf_counter() - began)


def measure(host: NetworkHost) -> None:
    """A round of everything on the host as it is."""
    engine, made, ports, opened, gone = host.engine, [], [], [], []
    for _ in range(ROUNDS):
        spec = host.vpc(uplink_address=host.public(3))
        made.append(in_ms(lambda spec=spec: engine.ensure_vpc(spec)))
        with_one = with_ports(spec, port(spec, "10.0.1.5"))
        ports.append(in_ms(lambda: engine.ensure_vpc(with_one)))  # noqa: B023 - called at once
        gone.append(in_ms(lambda: engine.remove_vpc(host.made.pop())))
    spec = host.vpc(uplink_address=host.public(3))
    spec = with_ports(spec, port(spec, "10.0.1.5"), port(spec, "10.0.2.5"))
    engine.ensure_vpc(spec)
    with two_guests(engine, spec) as (here, there):
        for number in range(8001, 8001 + ROUNDS):
            there.serve(number)
            opened.append(effective(engine, spec, here, "10.0.2.5", number))
    many = [rule(f"rule-{number}", port=1000 + number, cidr=f"10.{number // 250}.{number % 250}.0/24") for number in range(RULES)]
    large = replace(spec, groups=[GroupSpec("sg-web", [*many, OUT])])
    compiled = [in_ms(lambda: rules.render(large, rules.objects(large), host.public(1))) for _ in range(ROUNDS)]
    loaded = [in_ms(lambda: engine.ensure_vpc(large)) for _ in range(3)]
    engine.remove_vpc(host.made.pop())
    for what, found in (
        ("VPC with 2 subnets", made), ("port", ports), ("rule effective", opened), ("1,000 rules, compile", compiled),
        ("1,000 rules, whole change", loaded), ("VPC removed", gone), ("looking for drift, all VPCs", [in_ms(engine.drift) for _ in range(3)]),
    ):  # fmt: skip
        show(what, found)


def main(others: int = OTHERS) -> None:
    """Measure with one other VPC and with many."""
    if why := why_no_networks():
        print(f"no networks on this machine: {why}")
        return
    with local_network_host() as host:
        for count in (1, others):
            while len(host.made) < count:
                spec = host.vpc(uplink_address=host.public(10 + len(host.made)))
                host.engine.ensure_vpc(with_ports(spec, port(spec, "10.0.1.9"), port(spec, "10.0.2.9")))
            print(f"with {count} other VPC{'s' if count > 1 else ''} of 2 subnets and 2 ports")
            measure(host)


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:2]))
