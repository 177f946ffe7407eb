"""Signing in, lock-out and passwords."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.identity import passwords
from portal.identity.accounts import (
    check_password,
    digest,
    password_change,
    session_user,
)
from portal.identity.admin import set_password, unlock
from portal.identity.models import User, UserSession
from portal.identity.sign_in import sign_in
from portal.identity.tokens import token_create, token_user
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import InvalidRequest, NotFound, Unauthorized
from tests.support.effects import entries_since, last_seq, rows_of
from tests.support.people import PASSWORD, People
from tests.support.racing import race

IDLE = timedelta(minutes=60)
FRESH = "another long passphrase"


def stored(sessions: sessionmaker[Session], user: User) -> User:
    with sessions() as session:
        return session.get_one(User, user.id)


def set_user(sessions: sessionmaker[Session], user: User, **values: Any) -> None:
    with sessions() as session, transaction(session):
        session.execute(update(User).where(User.id == user.id).values(**values))


# -- signing in ----------------------------------------------------------------------------------------------------------------------------


def test_a_session_is_known_by_its_hash_alone(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    user, ctx, seq = people.user("developer"), visitor(), last_seq(database)
    step = sign_in(ctx, user.username, PASSWORD)
    secret, found = step.secret, step.signed_in
    assert found.session is not None
    assert secret not in repr(rows_of(database))
    with database() as session:
        row = session.get_one(UserSession, digest(secret))
        assert (row.user_id, row.project_id, row.source_ip, row.user_agent) == (user.id, people.project_id, "192.0.2.7", "tests/1.0")
        assert timedelta(hours=11, minutes=59) < row.expires_at - now() <= timedelta(hours=12)
        again = session_user(session, secret, idle=IDLE)
        assert again is not None
        assert (again.user.id, again.principal.credential, again.principal.grants) == (user.id, f"session:{row.session_id}", found.principal.grants)
    assert (ctx.principal.user_id, stored(database, user).last_login_ip) == (user.id, "192.0.2.7")
    (entry,) = entries_since(database, seq)
    assert (entry.action, entry.status, entry.user_id, entry.resource_id) == ("identity.session.create", "success", user.id, user.id)
    assert PASSWORD not in repr(entry.details)


def test_the_address_signs_in_as_the_name_does(people: People, visitor: Callable[[], Context]) -> None:
    user = people.user("developer")
    for name in (user.username, user.email, user.email.upper()):
        assert sign_in(visitor(), name, PASSWORD).signed_in.user.id == user.id
    with pytest.raises(Unauthorized):
        sign_in(visitor(), user.username.upper(), PASSWORD)


WRONG = ["", "x", PASSWORD[:-1], PASSWORD + " ", PASSWORD.upper(), "p" * 1_000_000, "nul\x00", "lone \ud800", PASSWORD + "\x00"]


@pytest.mark.parametrize("password", WRONG, ids=range(len(WRONG)))
def test_a_wrong_password_is_refused_counted_and_logged(
    people: People, visitor: Callable[[], Context], database: sessionmaker[Session], password: str
) -> None:
    user, seq = people.user("developer"), last_seq(database)
    with pytest.raises(Unauthorized):
        sign_in(visitor(), user.username, password)
    assert stored(database, user).failed_sign_ins == 1
    (entry,) = entries_since(database, seq)
    assert (entry.status, entry.resource_id, entry.source_ip) == ("failure", user.id, "192.0.2.7")
    # Found with all else of this person; that nobody had signed in is told as well.
    assert (entry.user_id, entry.username, entry.credential) == (user.id, user.username, "none")
    with database() as session:
        assert session.scalars(select(UserSession)).all() == []


@pytest.mark.parametrize("name", ["", "nobody", "x" * 100_000, "nul\x00", "lone \ud800", "' OR 1=1 --", "%"])
def test_an_unknown_name_is_refused_in_the_same_words(
    people: People, visitor: Callable[[], Context], database: sessionmaker[Session], name: str
) -> None:
    user = people.user("developer")
    with pytest.raises(Unauthorized) as known:
        sign_in(visitor(), user.username, "wrong")
    with pytest.raises(Unauthorized) as unknown:
        sign_in(visitor(), name, PASSWORD)
    assert (known.value.message, known.value.details) == (unknown.value.message, unknown.value.details)
    last = entries_since(database, 1)[-1]
    assert (last.resource_id, last.user_id, last.username) == ("", None, "anonymous")


def test_nobody_disabled_and_locked_cost_one_hash_like_anybody(
    people: People, visitor: Callable[[], Context], database: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    disabled, locked, right = people.user("developer"), people.user("developer"), people.user("developer")
    set_user(database, disabled, is_active=False)
    set_user(database, locked, locked_until=now() + timedelta(hours=1))
    passwords.matches("", "warm")
    hashed: list[str] = []
    monkeypatch.setattr(passwords, "_hasher", Counting(passwords._hasher, hashed))
    for name in (right.username, disabled.username, locked.username, "nobody-at-all"):
        hashed.clear()
        with pytest.raises(Unauthorized):
            check_password(visitor(), name, "wrong" if name == right.username else PASSWORD)
        assert hashed == ["verify"], name


class Counting:
    """A hasher that says what it was asked for."""

    def __init__(self, inner: Any, calls: list[str]) -> None:
        self.inner, self.calls = inner, calls

    def verify(self, *args: Any) -> bool:
        self.calls.append("verify")
        return bool(self.inner.verify(*args))

    def hash(self, *args: Any) -> str:
        self.calls.append("hash")
        return str(self.inner.hash(*args))


def test_a_disabled_user_is_out_at_once(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    user = people.user("developer")
    secret = sign_in(visitor(), user.username, PASSWORD).secret
    token, _row = token_create(people.context(user), user, "script")
    set_user(database, user, is_active=False)
    with database() as session:
        assert session_user(session, secret, idle=IDLE) is None
        assert token_user(session, token, source_ip="") is None
    with pytest.raises(Unauthorized):
        sign_in(visitor(), user.username, PASSWORD)


def test_a_weak_hash_is_replaced_when_the_password_is_known(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    from argon2 import PasswordHasher

    user = people.user("developer")
    weak = PasswordHasher(time_cost=1, memory_cost=512, parallelism=1).hash(PASSWORD)
    set_user(database, user, password_hash=weak)
    sign_in(visitor(), user.username, PASSWORD)
    fresh = stored(database, user).password_hash
    assert fresh != weak
    assert not passwords.needs_rehash(fresh)
    assert sign_in(visitor(), user.username, PASSWORD)


@pytest.mark.parametrize("damaged", ["", "plain", "$argon2id$v=19$broken"])
def test_a_damaged_hash_lets_nobody_in(people: People, visitor: Callable[[], Context], database: sessionmaker[Session], damaged: str) -> None:
    user = people.user("developer")
    set_user(database, user, password_hash=damaged)
    for password in ("", damaged, PASSWORD):
        with pytest.raises(Unauthorized):
            sign_in(visitor(), user.username, password)
        set_user(database, user, failed_sign_ins=0, locked_until=None)


# -- lock-out ------------------------------------------------------------------------------------------------------------------------------


def test_the_delay_grows_and_is_bounded() -> None:
    delays = [passwords.delay_after(failures) for failures in range(200)]
    assert delays[:5] == [timedelta(0)] * 5
    assert delays[5:9] == [timedelta(seconds=s) for s in (15, 30, 60, 120)]
    assert delays == sorted(delays)
    assert delays[-1] == passwords.LONGEST_DELAY


def test_wrong_passwords_lock_the_account_longer_and_longer(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    user, waits = people.user("developer"), []
    for number in range(1, 8):
        with pytest.raises(Unauthorized):
            sign_in(visitor(), user.username, "wrong")
        row = stored(database, user)
        assert row.failed_sign_ins == number
        waits.append((row.locked_until - now()).total_seconds() if row.locked_until else 0)
        with pytest.raises(Unauthorized) if row.locked_until else nothing():
            check_password(visitor(), user.username, PASSWORD)
        # As if the time had passed.
        set_user(database, user, locked_until=None, failed_sign_ins=number)
    assert [round(wait) for wait in waits] == [0, 0, 0, 0, 15, 30, 60]


def nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_tries_while_locked_neither_count_nor_prolong(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    user, until = people.user("developer"), now() + timedelta(minutes=5)
    set_user(database, user, failed_sign_ins=6, locked_until=until)
    for password in ("wrong", PASSWORD):
        with pytest.raises(Unauthorized):
            sign_in(visitor(), user.username, password)
    row = stored(database, user)
    assert (row.failed_sign_ins, row.locked_until) == (6, until)
    set_user(database, user, locked_until=now() - timedelta(seconds=1))
    sign_in(visitor(), user.username, PASSWORD)
    row = stored(database, user)
    assert (row.failed_sign_ins, row.locked_until) == (0, None)


def test_wrong_passwords_at_once_are_all_counted(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    user = people.user("developer")
    contexts = [visitor() for _ in range(8)]
    given = race([lambda ctx=ctx: check_password(ctx, user.username, "wrong") for ctx in contexts])
    assert all(isinstance(one, Unauthorized) for one in given)
    row = stored(database, user)
    assert row.locked_until is not None
    assert row.locked_until > now()
    assert row.failed_sign_ins >= passwords.FREE_TRIES


def test_one_account_that_is_locked_locks_no_other(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    user, other = people.user("developer"), people.user("developer")
    set_user(database, user, failed_sign_ins=6, locked_until=now() + timedelta(minutes=5))
    assert sign_in(visitor(), other.username, PASSWORD)


# -- passwords -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["short", "x" * 11, "x" * 257, "x" * 1_000_000, "nul\x00 in a long text", "lone \ud800 in a long text"])
def test_a_password_that_is_no_good_is_refused(people: People, database: sessionmaker[Session], password: str) -> None:
    user = people.user("developer")
    with pytest.raises(InvalidRequest) as refused:
        password_change(people.context(user), PASSWORD, password)
    assert "new" in refused.value.details
    assert password[:50] not in refused.value.message
    with pytest.raises(InvalidRequest, match="user name"):
        password_change(people.context(user), PASSWORD, f"xx{user.username.upper()}xxxxxxxx")
    with pytest.raises(InvalidRequest, match="differ"):
        password_change(people.context(user), PASSWORD, PASSWORD)
    assert stored(database, user).password_hash == user.password_hash


@pytest.mark.parametrize("old", ["wrong", "", "\ud800", "\x00"])
def test_changing_needs_the_present_password_and_wrong_ones_count(people: People, database: sessionmaker[Session], old: str) -> None:
    user = people.user("developer")
    with pytest.raises(InvalidRequest) as refused:
        password_change(people.context(user), old, FRESH)
    assert "old" in refused.value.details
    assert stored(database, user).failed_sign_ins == 1


def test_a_change_ends_every_other_session_and_every_token(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    user, other = people.user("developer"), people.user("developer")
    mine, foreign = visitor(), visitor()
    step = sign_in(mine, user.username, PASSWORD)
    kept, found = step.secret, step.signed_in
    ended = sign_in(visitor(), user.username, PASSWORD).secret
    others = sign_in(foreign, other.username, PASSWORD).secret
    token, _row = token_create(mine, user, "script")
    other_token, _row = token_create(foreign, other, "script")
    assert found.session is not None
    set_user(database, user, must_change_password=True)
    seq = last_seq(database)
    password_change(mine, PASSWORD, FRESH, keep_session=found.session.session_id)
    with database() as session:
        assert session_user(session, kept, idle=IDLE) is not None
        assert session_user(session, ended, idle=IDLE) is None
        assert session_user(session, others, idle=IDLE) is not None
        assert token_user(session, token, source_ip="") is None
        assert token_user(session, other_token, source_ip="") is not None
    assert stored(database, user).must_change_password is False
    assert [entry.action for entry in entries_since(database, seq)] == ["identity.user.change_password"]
    with pytest.raises(Unauthorized):
        sign_in(visitor(), user.username, PASSWORD)
    assert sign_in(visitor(), user.username, FRESH)


def test_an_operator_sets_a_password_and_ends_a_lock(
    people: People, visitor: Callable[[], Context], database: sessionmaker[Session], settings: Any
) -> None:
    user = people.user("developer")
    secret = sign_in(visitor(), user.username, PASSWORD).secret
    token, _row = token_create(people.context(user), user, "script")
    set_user(database, user, failed_sign_ins=9, locked_until=now() + timedelta(hours=1))
    with database() as session:
        unlock(session, settings, user.username)
        assert (stored(database, user).failed_sign_ins, stored(database, user).locked_until) == (0, None)
        with pytest.raises(InvalidRequest):
            set_password(session, settings, user.username, "short")
        set_password(session, settings, user.username, FRESH)
        assert session_user(session, secret, idle=IDLE) is None
        assert token_user(session, token, source_ip="") is None
        for call in (lambda: unlock(session, settings, "nobody"), lambda: set_password(session, settings, "nobody", FRESH)):
            with pytest.raises(NotFound):
                call()
    assert sign_in(visitor(), user.username, FRESH)
    assert {entry.source for entry in entries_since(database, 0) if entry.action in {"identity.user.unlock", "identity.user.set_password"}} == {"cli"}


@pytest.mark.real_passwords
def test_known_and_unknown_names_take_about_as_long(people: People, visitor: Callable[[], Context], database: sessionmaker[Session]) -> None:
    user = people.user("developer")
    # The hash of test users is kept from test to test, and may be of the cheap kind.
    set_user(database, user, password_hash=passwords.hash_password(PASSWORD))

    def best(name: str) -> float:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            with pytest.raises(Unauthorized):
                check_password(visitor(), name, "wrong")
            times.append(time.perf_counter() - began)
        return min(times)

    passwords.matches("", "warm")
    known, unknown = best(user.username), best("nobody-at-all")
    assert 0.2 < unknown / known < 5
