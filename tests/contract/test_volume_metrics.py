"""Measurements of volumes: what machines read and wrote since the last look, and what a volume takes."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from portal.compute.metrics import sample_metrics
from portal.engines.fake import FakeCompute
from portal.engines.ports import Engines, MachineSample, VolumeSample
from portal.kernel.db import now, transaction
from portal.kernel.runner import TaskRun
from portal.storage.volume_metrics import MIB, VolumeMetric, VolumeUsage, used_of
from portal.storage.volumes import volume_delete
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.scenarios import Stage, attached_volume, volume
from tests.support.web import Api


class Measured(FakeCompute):
    """A host whose counters the test sets."""

    given: list[MachineSample]

    def samples(self) -> list[MachineSample]:
        return self.given


IDLE = MachineSample("i-1", 0.0, 0, 1, 1000, 250, 400, 100, 0, 0, 0, 0)


def sample(volume_id: str, at_s: float, counter: int) -> MachineSample:
    """A machine whose volume counts so far: reads of 1 MiB and twice as many writes, 2 ms each."""
    done = VolumeSample(volume_id, counter, 2 * counter, counter * MIB, 2 * counter * MIB, counter * 2_000_000, counter * 4_000_000)
    return replace(IDLE, taken_at_s=at_s, volumes=[done])


@pytest.fixture
def measure(stage: Stage, people: People) -> Callable[..., list[VolumeMetric]]:
    """`measure(sample, …)`: take these measurements; those that are kept by then."""
    engine = Measured(stage.ctx.settings.data_dir / "measured")
    task = TaskRun(people.context(None), Engines(compute=engine))

    def take(*given: MachineSample) -> list[VolumeMetric]:
        engine.given = list(given)
        sample_metrics(task)
        task.ctx.db.rollback()
        return list(task.ctx.db.scalars(select(VolumeMetric).order_by(VolumeMetric.at).execution_options(populate_existing=True)))

    return take


Measure = Callable[..., list[VolumeMetric]]


def test_a_measurement_is_what_was_done_between_two_looks(stage: Stage, measure: Measure) -> None:
    row = volume(stage)
    assert measure(sample(row.id, 100.0, 5)) == []
    (point,) = measure(sample(row.id, 110.0, 25))
    assert (point.interval_s, point.iops, point.throughput_mbps, point.latency_ms) == (10.0, 6.0, 6.0, 2.0)
    assert (point.read_ops, point.write_ops, point.read_bytes, point.write_bytes) == (20, 40, 20 * MIB, 40 * MIB)
    (_, idle) = measure(sample(row.id, 120.0, 25))
    assert (idle.iops, idle.latency_ms) == (0.0, None)


def test_a_machine_that_was_booted_anew_counts_from_nothing(stage: Stage, measure: Measure) -> None:
    row = volume(stage)
    measure(sample(row.id, 100.0, 1000))
    (point,) = measure(sample(row.id, 110.0, 3))
    assert point.read_ops == 3


def test_while_no_machine_has_it_nothing_is_measured_and_the_next_one_begins_anew(stage: Stage, measure: Measure) -> None:
    row = volume(stage)
    measure(sample(row.id, 100.0, 5))
    assert measure() == []
    assert measure(sample(row.id, 5000.0, 9000)) == []
    assert [point.interval_s for point in measure(sample(row.id, 5010.0, 9001))] == [10.0]


def test_what_the_portal_does_not_know_or_is_old_is_not_kept(stage: Stage, measure: Measure) -> None:
    row = volume(stage)
    for at_s in (1.0, 2.0):
        assert measure(sample("vol-unknown", at_s, 1)) == []
    measure(sample(row.id, 1.0, 1))
    (point,) = measure(sample(row.id, 2.0, 1))
    with transaction(stage.ctx.db):
        stage.ctx.db.get_one(VolumeMetric, (row.id, point.at)).at = now() - timedelta(days=stage.ctx.settings.metrics_retention_days + 1)
    assert measure() == []
    stage.do(volume_delete, row.id)
    measure()
    stage.ctx.db.rollback()
    assert stage.ctx.db.get(VolumeUsage, row.id, populate_existing=True) is None


def test_what_it_takes_is_looked_at_also_while_nobody_has_it(stage: Stage) -> None:
    row = volume(stage)
    assert used_of(stage.ctx, row.id) is None
    stage.volumes.write(row.id, 1, "a")  # type: ignore[attr-defined] # the fake
    stage.tend()
    assert used_of(stage.ctx, row.id) == 4096


def test_the_api_gives_rates(api: Api, api_for: Callable[..., Api], stage: Stage, worker: TestWorker, people: People) -> None:
    row = attached_volume(stage)
    task = TaskRun(people.context(None), worker.runner.engines)
    for _ in range(2):
        sample_metrics(task)
        task.ctx.db.rollback()
    stage.tend()
    found: dict[str, Any] = api.get(f"/storage/volumes/{row.id}/metrics?hours=1").json
    assert {name: found[name] for name in ("volume_id", "hours", "used_bytes", "sample_count")} == {
        "volume_id": row.id, "hours": 1, "used_bytes": 0, "sample_count": 1,
    }  # fmt: skip
    (point,) = found["points"]
    assert {"iops", "throughput_mbps", "latency_ms", "used_bytes", "timestamp", "interval_s"} <= point.keys()
    assert api.get(f"/storage/volumes/{row.id}/metrics?hours=169").status_code == 400
    assert api_for("viewer", people.project()).get(f"/storage/volumes/{row.id}/metrics").status_code == 404
