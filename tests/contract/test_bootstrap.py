"""A fresh installation, and every start after it."""

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.bootstrap import ADMIN, DEFAULT_PROJECT, initialise
from portal.compute.flavors import DEFAULT_FLAVORS, Flavor
from portal.compute.images import CATALOGUE, Image
from portal.identity.models import Membership, Project, User
from portal.identity.passwords import check_strength, matches
from portal.kernel.db import transaction
from portal.kernel.quota import DIMENSIONS, Quota
from portal.settings import Settings
from tests.support.databases import ADMIN_PASSWORD
from tests.support.effects import rows_of
from tests.support.racing import race


@pytest.fixture
def empty(database: sessionmaker[Session]) -> sessionmaker[Session]:
    """Tables without rows."""
    from portal.kernel.audit import AuditHead
    from portal.kernel.db import Base

    with database() as session, transaction(session):
        for table in reversed(Base.metadata.sorted_tables):
            if table.name != AuditHead.__tablename__:
                session.execute(table.delete())
    return database


def test_a_fresh_installation_has_what_one_begins_with(empty: sessionmaker[Session], settings: Settings) -> None:
    with empty() as session:
        made = initialise(session, settings)
        assert made is not None
        assert (made.username, made.email, made.password, made.generated) == (ADMIN, settings.admin_email, ADMIN_PASSWORD, False)
        project = session.scalars(select(Project)).one()
        admin = session.scalars(select(User)).one()
        assert (project.name, admin.platform_role, admin.default_project_id) == (DEFAULT_PROJECT, "platform_admin", project.id)
        assert session.scalars(select(Membership.role)).one() == "project_admin"
        assert matches(admin.password_hash, ADMIN_PASSWORD)
        assert not admin.must_change_password
        assert session.scalar(select(func.count()).select_from(Flavor)) == len(DEFAULT_FLAVORS)
        assert {image.state for image in session.scalars(select(Image))} == {"available", "catalogue"}
        assert set(session.scalars(select(Image.id))) == {row[0] for row in CATALOGUE}
        assert set(session.scalars(select(Quota.dimension))) == set(DIMENSIONS)


def test_a_password_is_made_where_none_is_given(empty: sessionmaker[Session], settings: Settings) -> None:
    from pydantic import SecretStr

    with empty() as session:
        made = initialise(session, settings.model_copy(update={"admin_password": SecretStr("")}))
        assert made is not None
        assert made.generated
        assert len(made.password) >= 20
        admin = session.scalars(select(User)).one()
        assert matches(admin.password_hash, made.password)
        assert admin.must_change_password
        check_strength(settings, made.password, field="password", username=made.username, email=made.email)


def test_a_start_changes_nothing_that_somebody_changed(database: sessionmaker[Session], settings: Settings) -> None:
    with database() as session, transaction(session):
        session.execute(update(Flavor).where(Flavor.id == "t3-micro").values(hourly_cost_usd=7.5, is_active=False))
        session.execute(update(Quota).values(limit=3))
        session.execute(update(User).values(username="root", email="root@example.org"))
    before = rows_of(database)
    with database() as session:
        for _ in range(2):
            assert initialise(session, settings.model_copy(update={"admin_email": "new@example.org"})) is None
    assert rows_of(database) == before


def test_what_is_missing_is_added(database: sessionmaker[Session], settings: Settings) -> None:
    before = rows_of(database)
    with database() as session, transaction(session):
        session.query(Flavor).filter(Flavor.id == "t3-large").delete()
        session.query(Image).filter(Image.id == "ami-debian12").delete()
        session.query(Quota).filter(Quota.dimension == "cpus").delete()
    with database() as session:
        assert initialise(session, settings) is None
    after = rows_of(database)
    assert {name: len(rows) for name, rows in after.items()} == {name: len(rows) for name, rows in before.items()}


def test_several_that_start_at_once_make_one_of_everything(empty: sessionmaker[Session], settings: Settings) -> None:
    def begin() -> object:
        with empty() as session:
            return initialise(session, settings)

    given = race([begin] * 4)
    assert [one for one in given if isinstance(one, Exception)] == []
    assert sum(one is not None for one in given) == 1
    with empty() as session:
        assert session.scalar(select(func.count()).select_from(Project)) == session.scalar(select(func.count()).select_from(User)) == 1
