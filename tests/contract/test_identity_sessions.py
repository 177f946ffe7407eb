"""Sessions: how long they last, who ends them, and the project that they are in; and tokens."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.identity import accounts
from portal.identity.accounts import (
    SEEN_EVERY,
    digest,
    home_project,
    session_revoke,
    session_user,
    sessions_of,
    sign_out,
    switch_project,
)
from portal.identity.models import ApiToken, UserSession
from portal.identity.sign_in import sign_in
from portal.identity.tokens import API_KEYS, TOKEN_PREFIX, token_create, token_revoke, token_user, tokens_of
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import InvalidRequest, NotFound, QuotaExceeded
from tests.support.effects import entries_since, last_seq, rows_of
from tests.support.people import PASSWORD, People
from tests.support.racing import race

IDLE = timedelta(minutes=60)
FRESH = "another long passphrase"


# -- sessions ------------------------------------------------------------------------------------------------------------------------------


def age(sessions: sessionmaker[Session], secret: str, **values: Any) -> None:
    with sessions() as session, transaction(session):
        session.execute(update(UserSession).where(UserSession.id_hash == digest(secret)).values(**values))


def test_sessions_end_by_idleness_and_by_age(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    secret = sign_in(visitor(), people.user("developer").username, PASSWORD).secret
    with database() as session:
        age(database, secret, last_seen_at=now() - IDLE + timedelta(seconds=5))
        assert session_user(session, secret, idle=IDLE) is not None
        age(database, secret, last_seen_at=now() - IDLE)
        session.rollback()
        assert session_user(session, secret, idle=IDLE) is None
        age(database, secret, last_seen_at=now(), expires_at=now() - timedelta(seconds=1))
        session.rollback()
        assert session_user(session, secret, idle=IDLE) is None
        for odd in ("", "x", digest(secret), secret + "x", "\ud800"[:0]):
            assert session_user(session, odd, idle=IDLE) is None


def test_use_keeps_a_session_alive_with_few_writes(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    secret = sign_in(visitor(), people.user("developer").username, PASSWORD).secret
    writes: list[str] = []
    event.listen(database.kw["bind"], "before_cursor_execute", lambda _c, _u, sql, *_r: writes.append(sql) if sql.startswith("UPDATE") else None)
    with database() as session:
        for _ in range(5):
            assert session_user(session, secret, idle=IDLE)
        assert writes == []
        age(database, secret, last_seen_at=now() - SEEN_EVERY - timedelta(seconds=1))
        writes.clear()
        session.rollback()
        for _ in range(5):
            found = session_user(session, secret, idle=IDLE)
            assert found is not None
        assert len(writes) == 1
        assert found.session is not None
        assert now() - found.session.last_seen_at < timedelta(seconds=20)


def test_a_session_that_ends_while_it_is_looked_at_is_over(
    people: People, visitor: Callable[[], Context], database: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = sign_in(visitor(), people.user("developer").username, PASSWORD).secret
    age(database, secret, last_seen_at=now() - timedelta(minutes=5))
    touch = accounts._touch

    def late(*args: Any) -> bool:
        args[0].rollback()
        with database() as other, transaction(other):
            other.query(UserSession).delete()
        return touch(*args)

    monkeypatch.setattr(accounts, "_touch", late)
    with database() as session:
        assert session_user(session, secret, idle=IDLE) is None


def test_signing_out_ends_the_session_once(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    ctx = visitor()
    secret = sign_in(ctx, people.user("developer").username, PASSWORD).secret
    seq = last_seq(database)
    sign_out(ctx, secret)
    sign_out(ctx, secret)
    assert [entry.action for entry in entries_since(database, seq)] == ["identity.session.delete"]
    with database() as session:
        assert session_user(session, secret, idle=IDLE) is None


def test_own_sessions_are_listed_and_revoked_and_nobody_elses(
    people: People, visitor: Callable[[], Context], database: sessionmaker[Session]
) -> None:
    user, other = people.user("developer"), people.user("developer")
    first, second, foreign = visitor(), visitor(), visitor()
    step = sign_in(first, user.username, PASSWORD)
    secret, one = step.secret, step.signed_in
    two = sign_in(second, user.username, PASSWORD).signed_in
    sign_in(foreign, other.username, PASSWORD)
    assert one.session is not None
    assert two.session is not None
    assert {row.session_id for row in sessions_of(second)} == {one.session.session_id, two.session.session_id}
    with pytest.raises(NotFound):
        session_revoke(foreign, one.session.session_id)
    session_revoke(second, one.session.session_id)
    with database() as session:
        assert session_user(session, secret, idle=IDLE) is None
    with pytest.raises(NotFound):
        session_revoke(second, one.session.session_id)


# -- projects of a session -----------------------------------------------------------------------------------------------------------------


def test_a_session_enters_only_projects_of_its_user(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    user, elsewhere = people.user("developer"), people.project()
    ctx = visitor()
    secret = sign_in(ctx, user.username, PASSWORD).secret
    for project in (elsewhere, "prj-nonesuch", "", "\x00"):
        with pytest.raises(NotFound):
            switch_project(ctx, digest(secret), project)
    switch_project(ctx, digest(secret), people.project_id)
    boss = visitor()
    secret = sign_in(boss, people.admin().username, "correct horse battery staple").secret
    switch_project(boss, digest(secret), elsewhere)
    with database() as session:
        assert session.get_one(UserSession, digest(secret)).project_id == elsewhere
    for project in ("prj-nonesuch", "", "\x00", "\ud800"):
        with pytest.raises(NotFound):
            switch_project(boss, digest(secret), project)


def test_the_home_project(people: People) -> None:
    elsewhere = people.project()
    assert home_project(people.user("developer")) == people.project_id
    assert home_project(people.user("developer", elsewhere)) == elsewhere
    assert home_project(people.user("platform_admin")) == people.project_id
    nobody = people.user("")
    assert home_project(nobody) is None
    member = people.user("developer")
    member.default_project_id = elsewhere
    assert home_project(member) == people.project_id


# -- tokens --------------------------------------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_kept_as_a_hash(people: People, database: sessionmaker[Session]) -> None:
    user = people.user("developer")
    ctx = people.context(user)
    text, row = token_create(ctx, user, " laptop ")
    assert text.startswith(TOKEN_PREFIX)
    assert len(text) > 40
    everything = repr(rows_of(database)) + repr([entry.details for entry in entries_since(database, 0)])
    assert text not in everything
    assert (row.name, row.prefix, text.startswith(row.prefix), len(row.prefix)) == ("laptop", text[:12], True, 12)
    with database() as session:
        found = token_user(session, text, source_ip="192.0.2.9")
        assert found is not None
        assert (found.user.id, found.principal.credential) == (user.id, f"token:{row.id}")
        used = session.get_one(ApiToken, row.id, populate_existing=True)
        assert (used.last_used_ip, used.last_used_at is not None) == ("192.0.2.9", True)
        for odd in ("", TOKEN_PREFIX, text[:-1], text.upper(), row.token_hash, row.prefix, "x" * 100_000):
            assert token_user(session, odd, source_ip="") is None


def test_tokens_end_by_age_and_by_revoking(people: People, database: sessionmaker[Session]) -> None:
    user, other = people.user("developer"), people.user("developer")
    ctx = people.context(user)
    text, row = token_create(ctx, user, "one")
    with pytest.raises(NotFound):
        token_revoke(people.context(other), row.id)
    assert [token.id for token in tokens_of(ctx)] == [row.id]
    token_id = row.id
    token_revoke(ctx, token_id)
    with database() as session:
        assert token_user(session, text, source_ip="") is None
    with pytest.raises(NotFound):
        token_revoke(ctx, token_id)
    text, row = token_create(ctx, user, "two")
    with database() as session, transaction(session):
        session.execute(update(ApiToken).values(expires_at=now() - timedelta(seconds=1)))
    with database() as session:
        assert token_user(session, text, source_ip="") is None


@pytest.mark.parametrize("name", ["", "  ", "x" * 256, "nul\x00", "two\nlines", "\ud800"])
def test_a_token_needs_a_name(people: People, database: sessionmaker[Session], name: str) -> None:
    user = people.user("developer")
    with pytest.raises(InvalidRequest):
        token_create(people.context(user), user, name)
    with database() as session:
        assert session.scalars(select(ApiToken)).all() == []


def test_expired_tokens_make_room_and_live_ones_do_not(people: People, database: sessionmaker[Session]) -> None:
    user = people.user("developer")
    ctx = people.context(user)
    for number in range(API_KEYS.default):
        token_create(ctx, user, f"t{number}")
    with pytest.raises(QuotaExceeded, match="Your own limit for api_keys: 20 of 20 used"):
        token_create(ctx, user, "more")
    with database() as session, transaction(session):
        session.execute(update(ApiToken).where(ApiToken.name == "t3").values(expires_at=now() - timedelta(days=1)))
    token_create(ctx, user, "more")
    assert len(tokens_of(ctx)) == API_KEYS.default


def test_tokens_made_at_once_keep_the_limit(people: People, database: sessionmaker[Session]) -> None:
    user = people.user("developer")
    first = people.context(user)
    for number in range(API_KEYS.default - 2):
        token_create(first, user, f"t{number}")
    contexts = [people.context(user) for _ in range(6)]
    given = race([lambda ctx=ctx: token_create(ctx, user, "more") for ctx in contexts])
    assert sum(isinstance(one, tuple) for one in given) == 2, given
    assert sum(isinstance(one, QuotaExceeded) for one in given) == 4
    with database() as session:
        assert len(session.scalars(select(ApiToken)).all()) == API_KEYS.default
