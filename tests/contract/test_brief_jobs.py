"""A change waits a moment for a brief job on its target instead of being refused."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from portal.engines.network_ports import VpcSpec
from portal.kernel import operations
from portal.kernel.audit import AuditEntry
from portal.kernel.declare import Outcome
from portal.kernel.errors import StateConflict
from portal.kernel.operations import run
from portal.networking.security_groups import security_group_add_rule
from portal.networking.vpc import vpc_delete
from tests.support.people import People
from tests.support.recording_network import RecordingNetwork
from tests.support.scenarios import Stage, some_vpc
from tests.support.servers import until


@pytest.mark.parametrize("is_expected", [False, True])
def test_a_vpc_is_deleted_a_moment_after_a_change(
    stage: Stage, network: RecordingNetwork, people: People, monkeypatch: pytest.MonkeyPatch, *, is_expected: bool
) -> None:
    """Also where whoever asks says which version they mean, as the console does: the end of a job is none of their concern."""
    vpc = some_vpc(stage)
    run(stage.ctx, security_group_add_rule, vpc.default_group_id, {"from_port": 80, "cidr": "0.0.0.0/0"})
    stage.ctx.db.refresh(vpc)
    vpc_id, version = vpc.id, vpc.version if is_expected else None
    deletion: Future[Outcome] | None = None
    waits: list[float] = []
    ensure = network.ensure_vpc
    admin = people.context(people.user("project_admin"))

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    with ThreadPoolExecutor(1) as pool:

        def slowly(spec: VpcSpec) -> None:
            nonlocal deletion
            deletion = deletion or pool.submit(run, admin, vpc_delete, vpc_id, expected_version=version)
            until(lambda: bool(waits) or deletion.done(), within_s=30, what="the deletion has looked")
            ensure(spec)

        monkeypatch.setattr(network, "ensure_vpc", slowly)
        monkeypatch.setattr(operations, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        monkeypatch.setattr(operations, "BRIEF_S", 60.0)
        stage.worker.drain()
        assert deletion is not None
        outcome = deletion.result(60)
    assert waits
    monkeypatch.setattr(network, "ensure_vpc", ensure)
    assert outcome.row.state == "deleting"
    stage.worker.drain()
    assert vpc_id not in network.specs
    refused = stage.ctx.db.query(AuditEntry).filter(AuditEntry.action == "networking.vpc.delete", AuditEntry.status == "failure").all()
    assert refused == [], "nothing was refused, so nothing is told"


def test_while_no_worker_comes_it_says_what_it_waits_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    vpc = some_vpc(stage)
    run(stage.ctx, security_group_add_rule, vpc.default_group_id, {"from_port": 80, "cidr": "0.0.0.0/0"})
    monkeypatch.setattr(operations, "BRIEF_S", 0.0)
    with pytest.raises(StateConflict, match="is busy: Update network"):
        run(stage.ctx, vpc_delete, vpc.id)
