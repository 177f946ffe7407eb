"""Whoever changes an account locks the user first, and administrators by id before that: no two of them wait for each other."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyotp
import pytest
from sqlalchemy import Select, select, text
from sqlalchemy.orm import Session, sessionmaker

from portal.identity import factors, sign_in, sso
from portal.identity.accounts import password_change, session_renew, session_revoke, sign_out
from portal.identity.deletion import user_delete
from portal.identity.factors import MfaDevice
from portal.identity.iam import IamRole
from portal.identity.invitations import invitation_accept, user_invite
from portal.identity.models import ApiToken, Challenge, Invitation, Membership, User, UserSession, digest
from portal.identity.providers import Claims, GroupRule, Provider
from portal.identity.sso import Identity
from portal.identity.tokens import token_create
from portal.identity.users import user_sign_out, user_update
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.security.role_sessions import role_assume
from tests.support.people import PASSWORD, People
from tests.support.servers import until

FRESH = "another long passphrase"
RULE = GroupRule(group="cloud", platform_role="platform_admin")
STAFF = Provider(name="staff", label="Staff", issuer="https://id.example", client_id="portal", groups=(RULE,))
THEIRS = (Challenge, UserSession, ApiToken, MfaDevice, Identity, Invitation)


@pytest.fixture(autouse=True)
def _with_row_locks(database: sessionmaker[Session]) -> None:
    if database.kw["bind"].dialect.name != "postgresql":
        pytest.skip("SQLite has one writer at a time")


@contextmanager
def held(database: sessionmaker[Session], rows: Select[tuple[object]]) -> Iterator[Session]:
    """A transaction that holds these rows."""
    with database() as session:
        session.scalars(rows.with_for_update()).all()
        yield session
        session.rollback()


def waits(database: sessionmaker[Session]) -> bool:
    """Whether somebody waits for a row of somebody else."""
    waiting = text("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
    with database() as session:
        return bool(session.scalar(waiting))


def refuse_out_of_order(
    database: sessionmaker[Session], first: Select[tuple[object]], later: list[Select[tuple[object]]], act: Callable[[], object]
) -> None:
    """Hold what comes first; whoever acts waits for it and holds nothing yet of what comes later."""
    with ThreadPoolExecutor(1) as pool:
        with held(database, first) as session:
            done = pool.submit(act)
            until(lambda: waits(database) or done.done(), within_s=10, what="the other waits", every_s=0.01)
            assert not done.done(), done.exception()
            for rows in later:
                session.scalars(rows.with_for_update(nowait=True)).all()
        done.result(20)


class Full:
    """A user who has one of everything that is locked, and what others know of it."""

    def __init__(self, people: People, database: sessionmaker[Session]) -> None:
        self.people, self.user = people, people.user("platform_admin")
        self.ctx, self.boss = people.context(self.user), people.context(people.user("platform_admin"))
        with database() as session, transaction(session):
            session.add(UserSession(id_hash="x" * 64, session_id="test", user_id=self.user.id, expires_at=now().replace(year=2099)))
            session.add(Identity(user_id=self.user.id, provider="staff", issuer=STAFF.issuer, subject="u-1"))
            # Given by the provider, which does not give it any more.
            session.add(Membership(user_id=self.user.id, project_id=people.project_id, role="viewer", source=STAFF.method))
            says = {"principals": [{"type": "user", "id": self.user.id}]}
            session.add(IamRole(id="role-x", name="x", project_id=people.project_id, trust_policy=says))
        device, secret, _ = factors.totp_begin(self.ctx, "phone")
        self.totp = pyotp.TOTP(secret)
        factors.totp_confirm(self.ctx, device.id, self.totp.at(now(), counter_offset=-1))
        token_create(self.ctx, self.user, "mine")
        self.invitation = user_invite(self.boss, self.user.id)
        self.challenge = sign_in.sign_in(people.context(None), self.user.username, PASSWORD).secret
        self.waiting, self.waiting_secret, _ = factors.totp_begin(self.ctx, "tablet")
        with database() as session, transaction(session):
            self.identity = session.scalars(select(Identity.id)).one()
            # With the first app it got another secret.
            session.scalars(select(UserSession).where(UserSession.session_id == "test")).one().id_hash = digest("cookie")


def renew(ctx: Context) -> None:
    with transaction(ctx.db):
        session_renew(ctx, is_factor=False)


ACTS: dict[str, Callable[[Full], object]] = {
    "confirm": lambda full: renew(full.ctx),
    "confirm with a code": lambda full: sign_in.confirm(full.ctx, code=full.totp.now()),
    "second step": lambda full: sign_in.second_step(full.people.context(None), full.challenge, full.totp.now()),
    "tokens for a code": lambda full: sign_in.check(full.people.context(None), full.user.username, PASSWORD, full.totp.now()),
    "begin an app": lambda full: factors.totp_begin(full.ctx, "third"),
    "confirm an app": lambda full: factors.totp_confirm(full.ctx, full.waiting.id, pyotp.TOTP(full.waiting_secret).now()),
    "remove a device": lambda full: factors.device_remove(full.ctx, full.waiting.id),
    "reset factors": lambda full: factors.factors_reset(full.boss, full.user),
    "accept an invitation": lambda full: invitation_accept(full.people.context(None), full.invitation, FRESH),
    "change the password": lambda full: password_change(full.ctx, PASSWORD, FRESH),
    "disable": lambda full: user_update(full.boss, full.user.id, is_active=False),
    "sign out": lambda full: user_sign_out(full.boss, full.user.id),
    "end other sessions": lambda full: sign_in.sessions_end_others(full.ctx, ""),
    "come from a provider": lambda full: sso.enter(full.people.context(None), STAFF, Claims(STAFF.issuer, "u-1")),
    "assume a role": lambda full: role_assume(full.ctx, "role-x", "night shift"),
    "leave the browser": lambda full: sign_out(full.ctx, "cookie"),
    "revoke a session": lambda full: session_revoke(full.ctx, "test"),
    "unlink": lambda full: sso.identity_unlink(full.ctx, full.identity),
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
def test_the_user_is_locked_before_what_belongs_to_them(people: People, database: sessionmaker[Session], act: str) -> None:
    full = Full(people, database)
    mine = select(User).where(User.id == full.user.id)
    theirs = select(Membership.role).where(Membership.user_id == full.user.id)
    later = [theirs, *(select(model).where(model.user_id == full.user.id) for model in THEIRS), select(IamRole).where(IamRole.id == "role-x")]
    refuse_out_of_order(database, mine, later, lambda: ACTS[act](full))


@pytest.mark.parametrize(
    "act",
    [
        lambda full: user_update(full.boss, full.user.id, platform_role="auditor"),
        lambda full: user_delete(full.boss, full.user.id, "admin"),
        lambda full: sso.enter(full.people.context(None), STAFF, Claims(STAFF.issuer, "u-1")),
    ],
    ids=["demote", "delete", "follow groups"],
)
def test_administrators_are_locked_by_id(people: People, database: sessionmaker[Session], act: Callable[[Full], object]) -> None:
    full = Full(people, database)
    with database() as session, transaction(session):
        # Such that the target is not the first of them.
        session.get_one(User, full.user.id).role_source = STAFF.method
        first = session.scalars(select(User.id).where(User.platform_role == "platform_admin").order_by(User.id)).first()
        if first == full.user.id:
            session.add(User(id="a-first", username="first", email="first@example.org", platform_role="platform_admin", memberships=[]))
            first = "a-first"
    refuse_out_of_order(database, select(User).where(User.id == first), [select(User).where(User.id == full.user.id)], lambda: act(full))
