"""What a fresh installation begins with: tables, a project, its first administrator, flavors, images and built-in roles. Safe to run at every start."""

import secrets
from dataclasses import dataclass

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from portal.compute.flavors import seed_flavors
from portal.compute.images import seed_images
from portal.identity.models import Membership, Project, User
from portal.identity.passwords import hash_password
from portal.kernel import quota
from portal.kernel.db import transaction
from portal.kernel.ids import new_id
from portal.security.roles import seed_roles
from portal.settings import ROOT, Settings
from portal.storage.volume_types import seed_volume_types

DEFAULT_PROJECT = "default"
ADMIN = "admin"
LOCK = 7_201_845  # any number that nothing else in the database locks


@dataclass(frozen=True, slots=True)
class FirstAdmin:
    """The administrator that was just made; `generated` means that nobody knows the password yet."""

    username: str
    email: str
    password: str
    generated: bool


def alembic_config(engine: Engine) -> Config:
    """Alembic on this engine."""
    config = Config(str(ROOT / "migrations" / "alembic.ini"))
    config.attributes["engine"] = engine
    return config


def is_current(engine: Engine) -> bool:
    """Whether the database has the newest tables: asked first, since running nothing still takes a second."""
    head = ScriptDirectory.from_config(alembic_config(engine)).get_current_head()
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head


def migrate(engine: Engine) -> None:
    """Bring the tables to this version."""
    if not is_current(engine):
        command.upgrade(alembic_config(engine), "head")


def initialise(session: Session, settings: Settings) -> FirstAdmin | None:
    """Make what is missing of a first project, flavors, images and the first administrator; gives that one if it was made now."""
    with transaction(session):
        if session.get_bind().dialect.name == "postgresql":
            # Two replicas that start at once: the second finds everything made.
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        project = session.scalars(select(Project).where(Project.deleted_at.is_(None)).order_by(Project.created_at, Project.id)).first()
        if project is None:
            project = Project(id=new_id("prj"), name=DEFAULT_PROJECT, description="The first project.")
            session.add(project)
            session.flush()
        for dimension in quota.DIMENSIONS:
            quota.ensure(session, project.id, dimension)
        seed_flavors(session)
        seed_images(session)
        seed_roles(session)
        seed_volume_types(session)
        return _first_admin(session, settings, project)


def _first_admin(session: Session, settings: Settings, project: Project) -> FirstAdmin | None:
    if session.scalars(select(User.id).limit(1)).first() is not None:
        return None
    given = settings.admin_password.get_secret_value()
    password = given or secrets.token_urlsafe(15)
    user = User(
        username=ADMIN,
        email=settings.admin_email,
        password_hash=hash_password(password),
        platform_role="platform_admin",
        # One that was printed is in scrollbacks and journals.
        must_change_password=not given,
        default_project_id=project.id,
    )
    session.add(user)
    session.flush()
    session.add(Membership(user_id=user.id, project_id=project.id, role="project_admin"))
    return FirstAdmin(ADMIN, settings.admin_email, password, generated=not given)
