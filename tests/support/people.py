"""Users, projects and the contexts in which they act."""

import itertools
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, lru_cache

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.bootstrap import DEFAULT_PROJECT
from portal.identity.accounts import principal_of
from portal.identity.models import Membership, Project, User, UserSession
from portal.identity.passwords import hash_password
from portal.identity.tokens import token_create
from portal.kernel.context import SYSTEM, Context
from portal.kernel.db import now, transaction
from portal.kernel.ids import new_id
from portal.kernel.resource import Registry
from portal.settings import Settings

PASSWORD = "a long enough passphrase"
_numbers = itertools.count(1)


@lru_cache
def _hash(password: str) -> str:
    # argon2 is slow by design; every test user has the same password.
    return hash_password(password)


@dataclass
class People:
    """Makes users and projects, and contexts that are closed with the test."""

    sessions: sessionmaker[Session]
    settings: Settings
    registry: Registry
    opened: list[Session] = field(default_factory=list)

    @cached_property
    def project_id(self) -> str:
        """The default project, also after a test has renamed it."""
        with self.sessions() as session:
            return session.scalars(select(Project.id).where(Project.name == DEFAULT_PROJECT)).one()

    def project(self, name: str = "") -> str:
        """Another project."""
        project = Project(id=new_id("prj"), name=name or f"project-{next(_numbers)}")
        with self.sessions() as session, transaction(session):
            session.add(project)
        return project.id

    def user(self, role: str = "developer", project_id: str | None = None) -> User:
        """A user with this role in the project, the default one unless named; `platform_admin` and `auditor` hold it everywhere, "" is a member of none."""
        number = next(_numbers)
        name = f"{role or 'nobody'}-{number}".replace("_", "-")
        everywhere = role in {"platform_admin", "auditor"}
        user = User(
            username=name, email=f"{name}@example.org", password_hash=_hash(PASSWORD), platform_role=role if everywhere else "",
            default_project_id=project_id or self.project_id,
        )  # fmt: skip
        with self.sessions() as session, transaction(session):
            session.add(user)
            session.flush()
            if role and not everywhere:
                session.add(Membership(user_id=user.id, project_id=project_id or self.project_id, role=role))
            session.flush()
            session.refresh(user, ["memberships"])
        return user

    def admin(self) -> User:
        """The first administrator."""
        with self.sessions() as session:
            user = session.scalars(select(User).where(User.username == "admin")).one()
            assert user.memberships
            return user

    def context(self, user: User | None, project_id: str | None = None) -> Context:
        """A context for a user (None: the portal itself) in a project, the default one unless named."""
        session = self.sessions()
        self.opened.append(session)
        principal = principal_of(user, "session:test", proved_at=now()) if user else SYSTEM
        home = project_id or self.project_id
        return Context(session, self.settings, self.registry, principal, project_id=home, request_id=new_id("req"), source="test")

    def signed_in(self, user: User) -> Context:
        """A context for a user who has a session."""
        ctx, session_id = self.context(user), new_id("ses")
        with transaction(ctx.db):
            ctx.db.add(UserSession(id_hash=session_id, session_id=session_id, user_id=user.id, expires_at=now() + timedelta(hours=1)))
        ctx.principal = principal_of(user, f"session:{session_id}", proved_at=now())
        return ctx

    def token(self, user: User) -> str:
        """A fresh token of a user."""
        return token_create(self.context(user), user, "test")[0]

    def close(self) -> None:
        """Let go of every session."""
        for session in self.opened:
            session.close()
