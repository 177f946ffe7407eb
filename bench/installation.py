"""An installation to measure: its database filled with as many instances as asked for, its web server started as an operator would."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import insert, select
from sqlalchemy.orm import Session, sessionmaker

from portal.catalogue import build_registry
from portal.compute.instances import Instance
from portal.identity.sign_in import sign_in
from portal.identity.tokens import token_create
from portal.kernel import quota
from portal.kernel.db import now, open_database, transaction
from portal.settings import Settings
from tests.support.databases import ADMIN_PASSWORD, fill, settings_for
from tests.support.people import People
from tests.support.processes import portal_process
from tests.support.servers import answers, free_port, until

COUNT_DIMENSION = "rows:compute.instance"
BATCH = 10_000


@dataclass(frozen=True)
class Installation:
    """A filled installation with the administrator's credentials."""

    settings: Settings
    sessions: sessionmaker[Session]
    token: str
    session_secret: str
    instance_id: str


@contextmanager
def installation(directory: Path, *, instances: int) -> Iterator[Installation]:
    """Make one under a directory; its project holds `instances` stopped instances."""
    url = f"sqlite:///{directory / 'portal.db'}"
    fill(url, directory)
    settings = settings_for(directory, database_url=url, portal_port=free_port(), log_level="warn")
    sessions = open_database(settings)
    people = People(sessions, settings, build_registry())
    project_id = people.project_id
    with sessions() as session:
        populate(session, project_id, instances)
    ctx = people.context(people.admin())
    step = sign_in(ctx, "admin", ADMIN_PASSWORD)
    token, _ = token_create(ctx, step.signed_in.user, "bench")
    people.close()
    yield Installation(settings, sessions, token, step.secret, f"i-{instances // 2:017x}")
    sessions.kw["bind"].dispose()


def populate(session: Session, project_id: str, instances: int) -> None:
    """Rows as operations would have left them: reservations and counters included."""
    moment = now()
    with transaction(session):
        for first in range(0, instances, BATCH):
            numbers = range(first, min(first + BATCH, instances))
            session.execute(
                insert(Instance),
                [
                    {
                        "id": f"i-{n:017x}", "project_id": project_id, "name": f"instance-{n}", "flavor_id": "t3-micro", "image_id": "atonix-tiny",
                        "root_volume_size_gb": 8, "state": "stopped", "desired_power": "stopped",
                        "created_at": moment - timedelta(seconds=instances - n),
                    }
                    for n in numbers
                ],
            )  # fmt: skip
            session.execute(
                insert(quota.Reservation),
                [{"resource_id": f"i-{n:017x}", "dimension": COUNT_DIMENSION, "project_id": project_id, "amount": 1} for n in numbers],
            )
        quota.ensure(session, project_id, COUNT_DIMENSION)
        row = session.scalars(select(quota.Quota).where(quota.Quota.project_id == project_id, quota.Quota.dimension == COUNT_DIMENSION)).one()
        row.used = instances


@contextmanager
def web_server(made: Installation) -> Iterator[int]:
    """Run `portal web` on it; gives the process id."""
    with portal_process(made.settings, "web") as process:
        until(lambda: answers(made.settings.portal_port), within_s=30, what="the web server answers")
        yield process.pid
