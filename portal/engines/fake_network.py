"""A network engine that connects nothing: it keeps the rules of the real one, so that a wrong order of steps fails here as it would there.

Its host is a directory; every process that opens it sees the same networks. Tests tell it to fail, change things from outside, and look at what it
was asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import TypeVar

import msgspec

from portal.engines.confinement import checked_id
from portal.engines.fake_store import FakeCall, FakeStore
from portal.engines.network_checks import EXTERNAL, checked, checked_peering
from portal.engines.network_ports import Drift, Flow, NetworkEngine, PeeringSpec, Refusals, VpcSpec, no_beat, tap_name
from portal.engines.network_store import Store, VpcRecord
from portal.engines.ports import Capability, EngineError

T = TypeVar("T")


class FakeNetwork:
    """NetworkEngine over a directory."""

    def __init__(self, root: Path, *, external_cidr: str = EXTERNAL) -> None:
        """`root` is made if it is not there."""
        self._external = IPv4Network(external_cidr)
        self._calls = FakeStore(root)
        self._store = Store(root)
        self._flows, self._changed = root / "flows.json", root / "changed.json"

    # -- what tests do to it -----------------------------------------------------------------------------------------------------------------

    def fail_next(self, method: str, error: EngineError | None = None, times: int = 1) -> None:
        """Let the next `times` calls of a method fail, in whichever process they are made."""
        if method not in dir(NetworkEngine):
            raise AttributeError(f"a network engine has no method {method}")
        self._calls.plan_failure(method, error or EngineError("The fake engine was told to fail."), times)

    def outside_change(self, vpc_id: str, what: str) -> None:
        """Change something of a VPC as if somebody had done so on the host: the next `drift` tells it in these words."""
        with self._calls.locked():
            _write(self._changed, [*_read(self._changed, list[Drift]), Drift(vpc_id, what)])

    def see(self, flow: Flow) -> None:
        """Let a connection be seen."""
        with self._calls.locked():
            _write(self._flows, [*_read(self._flows, list[Flow]), flow])

    def calls(self) -> Sequence[FakeCall]:
        """Every call of the engine by any process, oldest first."""
        return self._calls.calls()

    def spec(self, vpc_id: str) -> VpcSpec | None:
        """What a VPC was last made as."""
        record = self._store.vpc(vpc_id)
        return record.spec if record is not None else None

    def peerings(self) -> Sequence[PeeringSpec]:
        """All peerings that are there."""
        return self._store.peerings()

    # -- the engine --------------------------------------------------------------------------------------------------------------------------

    def capability(self) -> Capability:
        """Networks can be made here, unless the fake was told otherwise."""
        try:
            with self._call("capability"):
                return Capability("network", available=True, detail="fake: nothing real is connected")
        except EngineError as error:
            return Capability("network", available=False, detail="fake", reason=error.message)

    def ensure_vpc(self, spec: VpcSpec) -> None:
        """Remember the VPC as it is to be."""
        checked_id(spec.vpc_id)
        with self._call("ensure_vpc", spec.vpc_id):
            self._store.save_vpc(VpcRecord([checked(spec, self._external)], epoch=0))
            _write(self._changed, [each for each in _read(self._changed, list[Drift]) if each.vpc_id != spec.vpc_id])

    def remove_vpc(self, vpc_id: str) -> None:
        """Forget a VPC and its peerings."""
        with self._call("remove_vpc", checked_id(vpc_id)):
            for peering in self._store.peerings():
                if vpc_id in peering.vpc_ids:
                    self._store.forget_peering(peering.peering_id)
            self._store.forget_vpc(vpc_id)
            _write(self._changed, [each for each in _read(self._changed, list[Drift]) if each.vpc_id != vpc_id])

    def ensure_peering(self, spec: PeeringSpec) -> None:
        """Remember a peering of two VPCs that are there."""
        with self._call("ensure_peering", checked_id(spec.peering_id)):
            self._store.save_peering(checked_peering(spec, [self.spec(vpc_id) for vpc_id in spec.vpc_ids]))

    def remove_peering(self, peering_id: str) -> None:
        """Forget a peering."""
        with self._call("remove_peering", checked_id(peering_id)):
            self._store.forget_peering(peering_id)

    def tap_of(self, port_id: str) -> str:
        """The name that the real engine gives as well."""
        return tap_name(port_id)

    def drift(self, beat: Callable[[], None] = no_beat) -> Sequence[Drift]:
        """What was changed from outside and not yet made anew."""
        beat()
        with self._call("drift"):
            return _read(self._changed, list[Drift])

    def vpcs(self) -> Sequence[str]:
        """Every VPC that is remembered."""
        with self._call("vpcs"):
            return self._store.vpcs()

    def rule_hits(self, vpc_id: str) -> Mapping[str, int]:
        """Nothing has passed any rule."""
        with self._call("rule_hits", checked_id(vpc_id)):
            spec = self.spec(vpc_id)
            return {rule.rule_id: 0 for group in spec.groups for rule in group.rules} if spec is not None else {}

    def refusals(self, vpc_id: str) -> Refusals:
        """Nothing was refused."""
        with self._call("refusals", checked_id(vpc_id)):
            return Refusals()

    def flows(self) -> Sequence[Flow]:
        """What tests let be seen, of VPCs whose flow log is on."""
        with self._call("flows"):
            seen = _read(self._flows, list[Flow])
            _write(self._flows, [])
            return [flow for flow in seen if (spec := self.spec(flow.vpc_id)) is not None and spec.flow_log]

    def close(self) -> None:
        """Nothing is held open."""

    @contextmanager
    def _call(self, method: str, subject: str = "") -> Iterator[None]:
        """Hold the host during one call, note it, and fail if that was planned."""
        with self._calls.locked():
            self._calls.note_call(FakeCall(method, subject))
            error = self._calls.take_failure(method)
            if error is not None:
                raise error
            yield


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return kind()


def _write(path: Path, content: object) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(content))
    fresh.replace(path)
