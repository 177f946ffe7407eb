"""The portal's answer to "can A reach B" is what packets do: networks are drawn through the portal, made on the host, and tried with real connections."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from portal.engines.network_ports import Via, VpcSpec
from portal.networking import view
from portal.networking.reachability import Answer, Specs, reach
from tests.support.drawn_networks import BEHIND, Call, Drawing
from tests.support.network import Guest, NetworkHost, Outside, why_no_networks
from tests.support.probes import answers, listen, swallow
from tests.support.scenarios import Stage

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here"), pytest.mark.timeout(240)]

CASES, ASKED, AT_ONCE, FEW = 220, 12, 32, 4
QUICKLY_S, PATIENTLY_S = 0.8, 3.0


def swallowers(specs: Specs) -> set[str]:
    """Interfaces that routes lead to: their guests take whatever comes."""
    return {route.target_id for vpc in specs.vpcs for subnet in vpc.subnets for route in subnet.routes if route.via is Via.INTERFACE}


def is_out_of_sight(call: Call, answer: Answer) -> bool:
    """Whether a call leaves for where nobody is who could answer."""
    return call.target == BEHIND and any(hop.kind == "internet-gateway" for hop in answer.hops)


def guests_of(host: NetworkHost, vpcs: list[VpcSpec]) -> dict[str, Guest]:
    return {each.port_id: Guest(host.engine, vpc, each).configure() for vpc in vpcs for each in vpc.ports}


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_said_of_any_network_is_what_happens_in_it(host: NetworkHost, stage: Stage, seed: int) -> None:
    outside = host.public(250)
    drawing = Drawing(stage, seed, outside)
    specs = drawing.specs()
    assert host.engine.drift() == []
    guests = guests_of(host, list(specs.vpcs))
    guests[outside] = Outside(host.engine, host)
    try:
        for port_id in swallowers(specs):
            swallow(guests[port_id])
        for guest in guests.values():
            listen(guest)
        calls = drawing.calls(specs, CASES)
        said = [reach(specs, call.source, call.target, call.protocol, call.port) for call in calls]
        # The page and the API answer with the same words.
        assert [view.reach(stage.ctx, call.source, call.target, call.protocol, call.port) for call in calls[:ASKED]] == said[:ASKED]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            came = list(pool.map(lambda call: answers(guests[call.source], call, QUICKLY_S), calls))
        # What should have come is tried once more, with few others: the machine may have been busy.
        late = [number for number, answer in enumerate(said) if answer.allowed and not came[number]]
        with ThreadPoolExecutor(FEW) as pool:
            for number, has_come in zip(late, pool.map(lambda one: answers(guests[calls[one].source], calls[one], PATIENTLY_S), late), strict=True):
                came[number] = has_come
        wrong = [
            f"{call} {'came' if has_come else 'did not come'}: {answer.sentence} {[hop.text for hop in answer.hops]}"
            for call, answer, has_come in zip(calls, said, came, strict=True)
            if answer.allowed is not has_come and not is_out_of_sight(call, answer)
        ]
        assert wrong == [], f"seed {seed}, {len(wrong)} of {len(calls)} were not as said"
        # Whoever names an interface means any address by which it can be called.
        pairs = drawing.pairs(specs, ASKED)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tried = list(
                pool.map(lambda pair: any(answers(guests[pair[0]], replace(pair[3], target=address), PATIENTLY_S) for address in pair[2]), pairs)
            )
        asked = [reach(specs, source, target, what.protocol, what.port).allowed for source, target, _, what in pairs]
        assert asked == tried, pairs
        assert 0.1 < sum(came) / len(came) < 0.9, "some of both"
    finally:
        for guest in guests.values():
            guest.close()
