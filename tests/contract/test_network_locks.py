"""What comes and goes with a network: its quotas are locked before the head of the audit log, as everywhere."""

from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel.audit import AuditHead
from portal.kernel.operations import run
from portal.kernel.quota import Quota
from portal.networking.vpc import vpc_create, vpc_delete
from tests.contract.test_lock_order import refuse_out_of_order
from tests.support.scenarios import Stage, some_vpc


def _create(stage: Stage) -> Callable[[], object]:
    return lambda: run(stage.ctx, vpc_create, None, {"name": "net", "cidr_block": "10.0.0.0/16"})


def _delete(stage: Stage) -> Callable[[], object]:
    run(stage.ctx, vpc_delete, some_vpc(stage).id, {"force": True})
    return stage.worker.drain


@pytest.mark.parametrize("begin", [_create, _delete])
def test_quotas_are_locked_before_the_audit_log(
    stage: Stage, database: sessionmaker[Session], begin: Callable[[Stage], Callable[[], object]]
) -> None:
    if database.kw["bind"].dialect.name != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    act = begin(stage)
    groups = select(Quota).where(Quota.project_id == stage.ctx.project_id, Quota.dimension == "security_groups")
    refuse_out_of_order(database, groups, [select(AuditHead)], act)
