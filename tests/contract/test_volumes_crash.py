"""The worker is killed in what is done to volumes in other ways than `test_jobs_crash` knows; the next one finishes, and the sweep finds nothing to remove."""

from collections.abc import Callable

import pytest

from portal.engines.ports import MachineState
from portal.engines.volume_ports import VolumeSpec
from portal.kernel.jobs import reap
from portal.kernel.operations import run
from portal.storage.tending import sweep
from portal.storage.volume_models import Snapshot, Volume
from tests.contract.crash_worker import Place, run_and_die
from tests.support.sabotage import Do
from tests.support.scenarios import TINY, Play, Stage, assert_sound, attached_volume, snapshot, volume


def _forced(stage: Stage) -> Play:
    row = attached_volume(stage)
    stage.engine.deafen(row.instance_id)
    return Play(row.id, {"force": True})


PLAYS: dict[str, tuple[str, Callable[[Stage], Play]]] = {
    "from a snapshot": ("storage.volume.create", lambda stage: Play(None, {"name": "made", "snapshot": snapshot(stage).id, "size_gb": 4})),
    "from an image": ("storage.volume.create", lambda stage: Play(None, {"name": "made", "image": TINY, "size_gb": 4})),
    "empty": ("storage.volume.create", lambda stage: Play(None, {"name": "made", "size_gb": 4})),
    "a copy of a snapshot": ("storage.snapshot.create", lambda stage: Play(None, {"name": "made", "snapshot": snapshot(stage).id})),
    "an image from a snapshot": ("compute.image.create", lambda stage: Play(None, {"name": "made", "snapshot": snapshot(stage).id})),
    "detached by force": ("storage.volume.detach", _forced),
}
PLACES = [Place("do", 0, before) for before in (True, False)] + [Place("commit", number, before=False) for number in range(3)]


def undisturbed(_phase: str, _position: int, call: Do) -> Do:
    return call


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("name", PLAYS)
def test_killed_on_the_way(stage: Stage, name: str, place: Place) -> None:
    kind, begin = PLAYS[name]
    play, op = begin(stage), stage.ctx.registry.operation(kind)
    outcome = run(stage.ctx, op, play.target, play.data)
    assert run_and_die(stage.ctx.settings, outcome.job_id, kind, place, undisturbed)
    if stage.worker.job(outcome.job_id).state == "running":
        stage.worker.let_lease_run_out(outcome.job_id)
    with stage.worker.sessions() as session:
        reap(session)
    stage.worker.drain()
    assert (stage.worker.job(outcome.job_id).state, stage.row(outcome).state) == ("succeeded", op.settles)
    stage.tend()
    kept = {each.content_id for each in stage.volumes.kept()}
    rows = {row.id for model in (Volume, Snapshot) for row in stage.ctx.db.query(model).filter(model.deleted_at.is_(None))}
    stage.ctx.db.rollback()
    assert kept <= rows
    assert set(stage.engine.machines().values()) <= {MachineState.RUNNING}
    assert_sound(stage)


def test_the_sweep_removes_what_ended_records_left_and_names_what_it_does_not_know(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    gone, moment = volume(stage), snapshot(stage)
    kept = {each.content_id for each in stage.volumes.kept()}
    for op, row in (("storage.volume.delete", gone), ("storage.snapshot.delete", moment)):
        stage.do(stage.ctx.registry.operation(op), row.id)
    # As a host that was away when they went, with something that an operator put there.
    for name in (gone.id, "vol-000000000bad"):
        stage.volumes.ensure_volume(VolumeSpec(name, "ssd", 1))
    stage.volumes.ensure_snapshot(moment.id, gone.id)
    assert set(sweep(stage.ctx, stage.volumes, stage.volumes.kept())) == {gone.id, moment.id}
    left = {each.content_id for each in stage.volumes.kept()}
    assert left == kept - {gone.id, moment.id} | {"vol-000000000bad"}
    assert "vol-000000000bad is on the host, and no record knows of it" in caplog.text
