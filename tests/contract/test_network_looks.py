"""A look at the host's networks while they are changed: what is being made is no damage, and what is damage is told before it is mended."""

from collections.abc import Callable

import pytest
from sqlalchemy import select

from portal.engines.network_ports import Drift
from portal.kernel.events import Event
from portal.kernel.operations import run
from portal.kernel.runner import TaskRun
from portal.networking.reconcile import reconcile_networks
from portal.networking.security_groups import security_group_add_rule
from tests.support.people import People
from tests.support.recording_network import RecordingNetwork
from tests.support.scenarios import Stage, some_vpc


def test_a_change_that_was_made_during_the_look_is_no_damage(
    stage: Stage, network: RecordingNetwork, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    vpc = some_vpc(stage)
    run(stage.ctx, security_group_add_rule, vpc.default_group_id, {"from_port": 80, "cidr": "0.0.0.0/0"})
    found = [Drift(vpc.id, "a bridge is missing")]

    def told(look: Callable[[], list[Drift]]) -> int:
        monkeypatch.setattr(network, "drift", lambda _beat: look())
        reconcile_networks(TaskRun(people.context(None), stage.worker.runner.engines))
        stage.ctx.db.rollback()
        return len(stage.ctx.db.scalars(select(Event).where(Event.type == "networking.vpc.drifted")).all())

    assert told(lambda: found if stage.worker.drain() else []) == 0
    assert stage.worker.drain() == 0, "nothing is queued that would mend the next damage before it is told"
    assert told(lambda: found) == 1
    assert stage.worker.drain() == 1
