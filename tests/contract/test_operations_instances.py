"""Instances: what is refused and why, before anything is made; what the host has room for; what is measured."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.flavors import Flavor, flavor_create, flavor_delete
from portal.compute.instance_steps import hostname, spec_of
from portal.compute.instances import (
    Instance,
    instance_create,
    instance_resize,
    instance_start,
    instance_stop,
    instance_terminate,
)
from portal.compute.key_pairs import generate, key_pair_create, key_pair_delete
from portal.compute.metrics import MAX_POINTS, InstanceCounters, InstanceMetric, sample_metrics, series
from portal.compute.summary import compute_summary
from portal.engines.fake import FakeCompute
from portal.engines.ports import Capability, Engines, HostCapacity, MachineSample
from portal.kernel.capabilities import CapabilityStatus, capabilities, report
from portal.kernel.db import now, transaction
from portal.kernel.declare import Outcome
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, StateConflict, Unavailable
from portal.kernel.operations import run
from portal.kernel.runner import TaskRun
from tests.support.effects import rows_of
from tests.support.people import People
from tests.support.racing import race
from tests.support.scenarios import TINY, Stage, running_instance, stopped_instance

CREATE = {"flavor": "t3-micro", "image": TINY}


def host(sessions: sessionmaker[Session], **facts: Any) -> None:
    found = replace(HostCapacity(cpus=64, memory_mib=1 << 20, disk_total_gib=1000, disk_free_gib=1000, accelerator="fake"), **facts)
    with sessions() as session:
        report(session, Capability("compute", available=True, detail="in memory"), worker="test", capacity=found)


# -- room on the host ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "what", "limit"),
    [({"cpus": 1}, "vCPU", 8), ({"memory_mib": 1024 + 8192}, "memory", 8192)],
)
def test_a_full_host_says_what_is_short(stage: Stage, database: sessionmaker[Session], facts: dict[str, int], what: str, limit: int) -> None:
    host(database, **facts)
    before = rows_of(database)
    with pytest.raises(Conflict, match="no room") as full:
        run(stage.ctx, instance_create, None, {"name": "web", "image": TINY, "flavor": "t3-micro", "count": 9})
    assert (full.value.details["what"], full.value.details["limit"]) == (what, limit)
    assert "Stop or terminate" in full.value.message
    assert rows_of(database) == before


def test_a_full_disk_is_named_with_its_setting(stage: Stage, database: sessionmaker[Session]) -> None:
    host(database, disk_free_gib=2)
    before = rows_of(database)
    with pytest.raises(Conflict, match=r"the disk under DATA_DIR has 2 GiB free, and 2 GiB of it are kept free \(DISK_RESERVED_GIB\)") as full:
        run(stage.ctx, instance_create, None, {"name": "web", **CREATE})
    assert (full.value.details["what"], full.value.details["setting"]) == ("disk", "DISK_RESERVED_GIB")
    assert rows_of(database) == before


def test_what_is_stopped_makes_room_and_starting_needs_it_again(stage: Stage, database: sessionmaker[Session]) -> None:
    host(database, memory_mib=1024 + 1024)
    first = stage.do(instance_create, name="one", **CREATE)
    with pytest.raises(Conflict, match="memory"):
        run(stage.ctx, instance_create, None, {"name": "two", **CREATE})
    stage.do(instance_stop, first.id, force=True)
    second = stage.do(instance_create, name="two", **CREATE)
    with pytest.raises(Conflict, match="memory"):
        run(stage.ctx, instance_start, first.id)
    stage.do(instance_terminate, second.id)
    assert stage.do(instance_start, first.id).state == "running"
    with pytest.raises(StateConflict):
        run(stage.ctx, instance_resize, first.id, {"flavor": "t3-large"})
    stage.do(instance_stop, first.id, force=True)
    with pytest.raises(Conflict, match="memory"):
        run(stage.ctx, instance_resize, first.id, {"flavor": "t3-large"})


def test_the_last_of_the_host_is_promised_once(people: People, database: sessionmaker[Session]) -> None:
    host(database, memory_mib=1024 + 2048)
    contexts = [people.context(people.user("developer")) for _ in range(6)]
    given = race([lambda ctx=ctx, n=n: run(ctx, instance_create, None, {"name": f"w{n}", **CREATE}) for n, ctx in enumerate(contexts)])
    assert sum(isinstance(one, Outcome) for one in given) == 2, given
    assert sum(isinstance(one, Conflict) for one in given) == 4


def test_without_an_engine_the_reason_and_the_remedy_are_told(stage: Stage, database: sessionmaker[Session]) -> None:
    with database() as session:
        report(session, Capability("compute", available=False, detail="", reason="QEMU is missing.", remedy="apt install qemu-system"), worker="w")
    with pytest.raises(Unavailable, match=r"QEMU is missing\. apt install qemu-system") as refused:
        run(stage.ctx, instance_create, None, {"name": "web", **CREATE})
    assert refused.value.details["remedy"] == "apt install qemu-system"
    assert compute_summary(stage.ctx).host == ()
    with database() as session, transaction(session):
        session.query(CapabilityStatus).delete()
    with pytest.raises(Unavailable, match="No worker has reported"):
        run(stage.ctx, instance_create, None, {"name": "web", **CREATE})


def test_the_overview_says_what_is_promised(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    host(database, memory_mib=1024 + 8192)
    running_instance(stage)
    stopped_instance(stage)
    stage.ctx.db.rollback()
    summary = compute_summary(stage.ctx)
    assert dict(summary.states) == {"running": 1, "stopped": 1}
    assert [(use.label, use.used, use.limit) for use in summary.host] == [("vCPU", 1, 512), ("Memory", 1, 8), ("Disk", 0, 1000)]
    elsewhere = people.project()
    assert dict(compute_summary(people.context(people.user("viewer", elsewhere), elsewhere)).states) == {}
    assert [status.name for status in capabilities(stage.ctx.db)] == ["compute", "network", "volumes"]


# -- refusals ------------------------------------------------------------------------------------------------------------------------------


def test_a_retired_flavor_or_one_with_gpus_is_refused(stage: Stage, database: sessionmaker[Session], people: People) -> None:
    row = stopped_instance(stage)
    with database() as session, transaction(session):
        session.execute(update(Flavor).where(Flavor.id == "t3-small").values(is_active=False))
        session.execute(update(Flavor).where(Flavor.id == "t3-medium").values(gpu_count=1))
    for flavor in ("t3-small", "t3-medium"):
        for operation, target, data in ((instance_create, None, {"name": "web", "image": TINY}), (instance_resize, row.id, {})):
            with pytest.raises(InvalidRequest) as refused:
                run(stage.ctx, operation, target, {**data, "flavor": flavor})
            assert list(refused.value.details) == ["flavor"]
    with pytest.raises(InvalidRequest, match="already"):
        run(stage.ctx, instance_resize, row.id, {"flavor": "t3-micro"})


def test_protection_has_to_be_switched_off_first(stage: Stage) -> None:
    row = stage.do(instance_create, name="web", enable_termination_protection=True, **CREATE)
    with pytest.raises(Conflict, match="has termination protection"):
        run(stage.ctx, instance_terminate, row.id)
    stage.do(stage.ctx.registry.operation("compute.instance.update"), row.id, enable_termination_protection=False)
    assert stage.do(instance_terminate, row.id).state == "terminated"


def test_keys_reach_the_guest_also_when_the_pair_is_gone(stage: Stage) -> None:
    pair = stage.do(key_pair_create, name="mine")
    own = generate("own")[0]
    row = stage.do(instance_create, name="Web Server 1", key_pair="mine", public_key=f"  {own} \n", **CREATE)
    stage.do(key_pair_delete, pair.id)
    row = stage.ctx.db.get_one(Instance, row.id, populate_existing=True)
    spec = spec_of(row)
    assert (spec.hostname, spec.ssh_public_keys) == ("web-server-1", (pair.public_key, own))
    assert [hostname(name) for name in ("Ä", "--", "a" * 100, "x_y.z", "A-" * 40)] == ["instance", "instance", "a" * 63, "x-y-z", ("a-" * 32)[:63]]


def test_flavors_in_use_stay_and_ids_are_not_given_twice(stage: Stage, people: People) -> None:
    boss = people.context(people.user("platform_admin"))
    data: dict[str, Any] = {"flavor_id": "x1-tiny", "name": "x1.tiny", "vcpus": 1, "memory_mb": 512, "disk_gb": 1}
    with pytest.raises(Forbidden):
        run(stage.ctx, flavor_create, None, data)
    assert run(boss, flavor_create, None, {**data, "gpu_count": 1, "gpu_type": "T4"}).row.is_gpu
    with pytest.raises(Conflict, match="There is or was"):
        run(boss, flavor_create, None, {**data, "name": "other"})
    row = stage.do(instance_create, name="web", **CREATE)
    boss.db.rollback()
    with pytest.raises(Conflict, match="used by web"):
        run(boss, flavor_delete, "t3-micro")
    stage.do(instance_terminate, row.id)
    run(boss, flavor_delete, "t3-micro")
    run(boss, flavor_delete, "x1-tiny")
    with pytest.raises(Conflict, match="There is or was"):
        run(boss, flavor_create, None, data)
    assert boss.db.get_one(Flavor, "t3-small").size_text() == "2 / 2 GiB"


@pytest.mark.parametrize("flavor_id", ["x", "X1-tiny", "x1", "x1_tiny", "-x1", "x1-tiny-", "x" * 65, "x1-tiny\n"])
def test_a_flavor_needs_an_id_of_its_kind(people: People, flavor_id: str) -> None:
    boss = people.context(people.user("platform_admin"))
    with pytest.raises(InvalidRequest) as refused:
        run(boss, flavor_create, None, {"flavor_id": flavor_id, "name": "x1.tiny", "vcpus": 1, "memory_mb": 512, "disk_gb": 1})
    assert list(refused.value.details) == ["flavor_id"]


# -- measurements --------------------------------------------------------------------------------------------------------------------------


class Measured(FakeCompute):
    """A host whose counters the test sets."""

    given: list[MachineSample]

    def samples(self) -> list[MachineSample]:
        return self.given


def sample(machine_id: str, at_s: float, counter: int, **more: Any) -> MachineSample:
    base = MachineSample(
        machine_id=machine_id, taken_at_s=at_s, cpu_time_ns=counter * 10**9, vcpus=2, memory_total_bytes=1000, memory_used_bytes=250, disk_capacity_bytes=400,
        disk_allocated_bytes=100, disk_read_bytes=counter * 10, disk_write_bytes=counter * 20, net_in_bytes=counter * 30, net_out_bytes=counter * 40,
    )  # fmt: skip
    return replace(base, **more)


@pytest.fixture
def measure(stage: Stage, people: People) -> Any:
    """`measure(sample, …)`: take these measurements."""
    engine = Measured(stage.ctx.settings.data_dir / "measured")
    task = TaskRun(people.context(None), Engines(compute=engine))

    def take(*given: MachineSample) -> list[InstanceMetric]:
        engine.given = list(given)
        sample_metrics(task)
        task.ctx.db.rollback()
        return list(task.ctx.db.scalars(select(InstanceMetric).order_by(InstanceMetric.at).execution_options(populate_existing=True)))

    return take


def test_a_measurement_is_the_difference_of_two_samples(stage: Stage, measure: Any) -> None:
    row = running_instance(stage)
    assert measure(sample(row.id, 100.0, 5)) == []
    (point,) = measure(sample(row.id, 110.0, 10))
    assert (point.interval_s, point.cpu_usage_percent, point.memory_usage_percent, point.disk_usage_percent) == (10.0, 25.0, 25.0, 25.0)
    assert (point.io_read_bytes, point.io_write_bytes, point.network_in_bytes, point.network_out_bytes) == (50, 100, 150, 200)


def test_counters_that_go_back_belong_to_a_machine_booted_anew(stage: Stage, measure: Any) -> None:
    row = running_instance(stage)
    measure(sample(row.id, 100.0, 1000))
    (point,) = measure(sample(row.id, 110.0, 3))
    assert (point.network_in_bytes, point.cpu_usage_percent) == (90, 15.0)


def test_odd_samples_give_no_odd_figures(stage: Stage, measure: Any) -> None:
    row = running_instance(stage)
    measure(sample(row.id, 100.0, 1))
    assert measure(sample(row.id, 100.0, 2)) == []
    assert measure(sample(row.id, 90.0, 3)) == []
    (point,) = measure(sample(row.id, 91.0, 1000, vcpus=0, memory_total_bytes=0, disk_allocated_bytes=10**9))
    assert (point.cpu_usage_percent, point.memory_usage_percent, point.disk_usage_percent) == (100.0, 0.0, 100.0)


def test_only_known_machines_that_want_it_are_measured(stage: Stage, measure: Any, database: sessionmaker[Session]) -> None:
    row = stage.do(instance_create, name="quiet", enable_monitoring=False, **CREATE)
    for at_s in (1.0, 2.0):
        assert measure(sample(row.id, at_s, 1), sample("i-unknown", at_s, 1)) == []
    with database() as session:
        assert session.scalar(select(func.count()).select_from(InstanceCounters)) == 0


def test_old_measurements_are_forgotten_and_without_an_engine_nothing_happens(
    stage: Stage, people: People, measure: Any, database: sessionmaker[Session]
) -> None:
    row = running_instance(stage)
    add_points(database, row.id, [timedelta(days=8), timedelta(days=1)])
    assert len(measure()) == 1
    sample_metrics(TaskRun(people.context(None), Engines()))


def add_points(sessions: sessionmaker[Session], instance_id: str, ages: list[timedelta], cpu: float = 10.0) -> None:
    with sessions() as session, transaction(session):
        moment = now()
        session.add_all(
            InstanceMetric(
                instance_id=instance_id, at=moment - age, interval_s=15, cpu_usage_percent=cpu + number, memory_usage_percent=1, disk_usage_percent=2,
                network_in_bytes=1, network_out_bytes=2, io_read_bytes=3, io_write_bytes=4,
            )
            for number, age in enumerate(ages)
        )  # fmt: skip


def test_a_series_is_thinned_to_what_a_chart_shows_and_keeps_the_newest(stage: Stage, database: sessionmaker[Session]) -> None:
    row = running_instance(stage)
    ages = [timedelta(seconds=15 * number) for number in range(1000)]
    add_points(database, row.id, ages, cpu=-900.0)
    stage.ctx.db.rollback()
    found = series(stage.ctx, row.id, hours=24)
    assert (found.sample_count, len(found.points) <= MAX_POINTS) == (1000, True)
    moments = [point.at for point in found.points]
    assert moments == sorted(moments)
    assert now() - moments[-1] < timedelta(minutes=1)
    assert found.summary["cpu_usage_percent"] == {"min": -900.0, "avg": -400.5, "max": 99.0}
    assert series(stage.ctx, row.id, hours=0.5).sample_count == 120
    empty = series(stage.ctx, "i-nonesuch", hours=1)
    assert (empty.points, empty.sample_count, empty.summary["cpu_usage_percent"]) == ([], 0, {"min": 0.0, "avg": 0.0, "max": 0.0})
