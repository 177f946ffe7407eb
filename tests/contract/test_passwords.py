"""Which passwords are accepted, wherever one is chosen, and that they are compared as they are."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import update
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from portal.identity import passwords
from portal.identity.accounts import password_change
from portal.identity.admin import set_password
from portal.identity.invitations import invitation_accept, user_invite
from portal.identity.models import User
from portal.identity.passwords import CONTEXT_WORDS, MIN_LENGTH, check_strength
from portal.identity.sign_in import sign_in
from portal.identity.users import user_create
from portal.kernel.context import ANONYMOUS
from portal.kernel.db import now
from portal.kernel.errors import InvalidRequest
from portal.settings import Settings
from tests.support.people import PASSWORD, People
from tests.support.web import Api, browser, csrf_of

COMMON = FREQUENCY_LISTS["passwords"]
WEAK = "Password-2024"
Chosen = Callable[[People, User, str], object]


def choose(settings: Settings, password: str) -> None:
    """As a user called mwagner of an installation at cloud.tannenberg.example."""
    there = settings.model_copy(update={"public_url": "https://cloud.tannenberg.example"})
    check_strength(there, password, field="new", username="mwagner", email="martha.wagner@holzfrosch.example")


def accept(people: People, user: User, password: str) -> object:
    code = user_invite(people.context(people.admin()), user.id)
    return invitation_accept(replace(people.context(None), principal=ANONYMOUS, project_id=None), code, password)


def create(people: People, user: User, password: str) -> object:
    return user_create(people.context(people.admin()), username=f"{user.username}-2", email=f"2{user.email}", password=password)


WAYS: dict[str, Chosen] = {
    "changed": lambda people, user, password: password_change(people.context(user), PASSWORD, password),
    "given to a new user": create,
    "chosen with a link": accept,
    "set on the command line": lambda people, user, password: set_password(people.context(None).db, people.settings, user.username, password),
}


@pytest.mark.parametrize("way", WAYS)
def test_wherever_one_is_chosen_it_has_to_be_good(people: People, way: str) -> None:
    user = people.user("developer")
    with pytest.raises(InvalidRequest, match=r"is too easy to guess\. .*Add another word or two"):
        WAYS[way](people, user, WEAK)
    WAYS[way](people, user, "tulip-violin-anchor")


def test_the_most_common_ones_are_refused(settings: Settings) -> None:
    """All that are long enough, and the others as people make them long enough."""
    short = [word for word in COMMON if len(word) < MIN_LENGTH][:300]
    longer = [(word * MIN_LENGTH)[: max(MIN_LENGTH, 2 * len(word))] for word in short]
    longer += [f"{word}{'1234567890'[: MIN_LENGTH - len(word)]}" for word in short[:150]]
    accepted = []
    for password in [*(word for word in COMMON if len(word) >= MIN_LENGTH), *longer]:
        try:
            choose(settings, password)
        except InvalidRequest:
            continue
        accepted.append(password)
    assert accepted == []


@pytest.mark.parametrize(
    "password",
    [
        *(f"{word.title()}{word}-1!" for word in CONTEXT_WORDS), "atonixportal", "Atonix-Portal-1!", "MWagner2024!", "martha.wagner.1985", "Holzfrosch-2026",
        "Martha-Holzfrosch", "tannenberg-cloud", "CloudTannenberg1",
    ],
)  # fmt: skip
def test_names_that_everybody_knows_make_no_password(settings: Settings, password: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        choose(settings, password)
    assert password not in refused.value.message


@pytest.mark.parametrize(
    "password",
    [
        "tulipviolinanchor", "TULIPVIOLINANCHOR", "834901275563184", "tulip violin anchor", "Grüße-aus-Öhningen", "五月雨を集めて早し最上川かな", "🦉🎻🧭🪵🌋🧂🪁🦑🫖🧵🪜🥨",
        "~!)}]>^*;:,.?/'\"", "an atonix portal has tulips and anchors", "k" + "3vQz" * 3 + "tulip violin", "tulip violin anchor " * 12,
    ],
)  # fmt: skip
def test_any_composition_will_do(settings: Settings, password: str) -> None:
    choose(settings, password)


def test_judging_takes_no_longer_than_a_breath(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs that stand for several letters multiply the work: only so many of them are looked at in so many ways."""
    seen: list[str] = []
    judge = passwords.zxcvbn
    monkeypatch.setattr(passwords, "zxcvbn", lambda password, **more: seen.append(password) or judge(password, **more))
    choose(settings, "4@8({[<369&#!1|70$5+%2" * 11)
    assert len(seen[0]) == 72
    assert not set("({[<|") & set(seen[0])


@pytest.mark.parametrize("password", ["tulip violin " + "anchor" * 10, "  tulip violin anchor  ", "tulip violin anchor" + "x" * 237])
def test_it_is_taken_as_it_is(app: Flask, people: People, api_for: Callable[..., Api], password: str) -> None:
    user = people.user("developer")
    password_change(people.context(user), PASSWORD, password)

    def enter(tried: str) -> list[int]:
        client = app.test_client()
        data = {"csrf_token": csrf_of(client.get("/login")), "username": user.username, "password": tried}
        credentials = {"username": user.username, "password": tried}
        return [client.post("/login", data=data).status_code, app.test_client().post("/api/v1/auth/login", json=credentials).status_code]

    assert enter(password) == [303, 200]
    for other in {password[:-1], password[:72], password[:64], password + "x", password.upper(), password.strip(), password.replace(" ", "")} - {
        password
    }:
        with people.sessions() as session:
            session.execute(update(User).where(User.id == user.id).values(failed_sign_ins=0, locked_until=None))
            session.commit()
        assert enter(other) == [401, 401]


def test_it_does_not_grow_old(people: People) -> None:
    user = people.user("developer")
    long_ago = now() - timedelta(days=3 * 365)
    with people.sessions() as session:
        session.execute(update(User).where(User.id == user.id).values(created_at=long_ago, last_login_at=long_ago))
        session.commit()
    visitor = replace(people.context(None), principal=ANONYMOUS, project_id=None)
    found = sign_in(visitor, user.username, PASSWORD).signed_in
    assert found is not None
    assert not found.user.must_change_password


def test_fields_for_passwords_let_helpers_in(app: Flask, people: People) -> None:
    client = browser(app, people, people.user("platform_admin"))
    pages = ("/account/password", "/users", "/confirm")
    fields = [(path, field) for path in pages for field in fields_of(client.get(path).text)]
    public = ("/login", "/login/again", "/invite")
    fields += [(path, field) for path in public for field in fields_of(app.test_client().get(path).text)]
    assert {path for path, _ in fields} == {*pages, *public}
    for path, field in fields:
        assert 'type="password"' in field, path
        assert 'autocomplete="off"' not in field, path
        assert 'autocomplete="' in field, path
        assert "onpaste" not in field, path


def fields_of(page: str) -> list[str]:
    """The inputs of a page in which a password is typed."""
    inputs = [f"<input{text.partition('>')[0]}>" for text in page.split("<input")[1:]]
    return [text for text in inputs if any(f'name="{name}"' in text for name in ("password", "old", "new", "again"))]


@pytest.mark.parametrize(
    "password", ["Summer2026!!", "Winter2025!!", "Sommer2026!!", "Monday2026!!", "Dragon123456!", "Letmein12345!", "P@ssw0rd2026!", "Tr0ub4dour&3xyz"]
)
def test_what_whoever_guesses_tries_first_is_refused(settings: Settings, password: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is too easy to guess\. \w+"):
        choose(settings, password)
