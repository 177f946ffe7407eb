"""Whatever ends the session, the token or the trust that a role was assumed by ends what was assumed, for good and before anything else is said."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import select, update

from portal.identity import api_sessions
from portal.identity.accounts import session_replace, session_revoke, sign_out
from portal.identity.models import ApiToken, User, UserSession, digest
from portal.identity.sign_in import Proof, sessions_end_others, sign_in
from portal.identity.sso import LogoutToken, sessions_end
from portal.identity.tokens import token_create, token_revoke, token_user
from portal.identity.users import user_sign_out
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import Unauthorized
from portal.security.role_sessions import role_assume
from tests.contract.test_lock_order import STAFF
from tests.contract.test_roles import admin, assume, is_over, new_role, trust, viewer
from tests.support.people import PASSWORD, People
from tests.support.web import Api

__all__ = ["admin", "viewer"]


class Entered:
    """A session of a user, what knows it, and a role that was assumed in it."""

    def __init__(self, app: Flask, people: People, user: User, role: str) -> None:
        self.people, self.user = people, user
        self.boss = people.context(people.user("platform_admin"))
        found = sign_in(people.context(None), user.username, PASSWORD)
        assert found.signed_in is not None
        assert found.signed_in.session is not None
        self.secret, self.session_id = found.secret, found.signed_in.session.session_id
        self.ctx = people.context(user)
        self.ctx.principal = found.signed_in.principal
        self.role = Api(app.test_client(), user, role_assume(self.ctx, role, "from a session")[0])


def from_provider(entered: Entered) -> None:
    """A provider says that the session is over."""
    with entered.people.sessions() as session, transaction(session):
        row = session.query(UserSession).filter_by(session_id=entered.session_id).one()
        row.method, row.provider_sid = STAFF.method, "s-1"
    sessions_end(entered.people.context(None), STAFF, LogoutToken("", "s-1", "j-1", 0.0))


SESSION_ENDS: dict[str, Callable[[Entered], object]] = {
    "signed out": lambda it: sign_out(it.ctx, it.secret),
    "replaced": lambda it: session_replace(it.people.context(None), it.secret),
    "revoked": lambda it: session_revoke(it.ctx, it.session_id),
    "others ended": lambda it: sessions_end_others(it.people.context(it.user), ""),
    "signed out everywhere": lambda it: user_sign_out(it.boss, it.user.id),
    "ended by its provider": from_provider,
}  # fmt: skip


@pytest.mark.parametrize("way", SESSION_ENDS)
def test_a_role_ends_with_the_session_that_assumed_it(app: Flask, people: People, admin: Api, viewer: Api, way: str) -> None:
    entered = Entered(app, people, viewer.user, new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("user", viewer.user.id))))
    assert not is_over(entered.role)
    SESSION_ENDS[way](entered)
    assert is_over(entered.role)


def test_a_role_ends_with_a_session_whose_refresh_token_was_used_twice(app: Flask, people: People, admin: Api, viewer: Api) -> None:
    role = new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("user", viewer.user.id)))
    ctx: Context = people.context(None)
    pair = api_sessions.session_begin(ctx, viewer.user, Proof("api"))
    acting = Api(app.test_client(), viewer.user, role_assume(ctx, role, "from a program")[0])
    api_sessions.session_refresh(people.context(None), pair.refresh)
    assert not is_over(acting)
    with pytest.raises(Unauthorized):
        api_sessions.session_refresh(people.context(None), pair.refresh)
    assert is_over(acting)


# -- tokens and trust -------------------------------------------------------------------------------------------------------------------------


def listed(admin: Api, role: str) -> int:
    """How many sessions run in a role, as whoever manages it is told."""
    return int(admin.get(f"/security/roles/{role}/sessions").json["count"])


def a_group(admin: Api, viewer: Api) -> str:
    """A group with somebody in it."""
    group = str(admin.post("/security/groups", {"name": "ops"}).json["group_id"])
    assert admin.post(f"/security/groups/{group}/members", {"user_id": viewer.user.id}).status_code == 200
    return group


def test_whoever_is_trusted_again_does_not_come_back_into_what_ended(admin: Api, viewer: Api) -> None:
    says = trust(("user", viewer.user.id))
    role = new_role(admin, "keys", "compute.key_pair.*", trusts=says)
    acting = assume(viewer, role)
    for trusts in ({"principals": []}, says):
        assert admin("PATCH", f"/security/roles/{role}", {"trust_policy": trusts}).status_code == 200
        assert is_over(acting)
    assert not is_over(assume(viewer, role))


def test_whoever_comes_back_to_a_group_does_not_either(admin: Api, viewer: Api) -> None:
    group = a_group(admin, viewer)
    role = new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("group", "ops")))
    acting = assume(viewer, role)
    assert admin("DELETE", f"/security/groups/{group}/members/{viewer.user.id}").status_code == 204
    assert admin.post(f"/security/groups/{group}/members", {"user_id": viewer.user.id}).status_code == 200
    assert is_over(acting)
    acting = assume(viewer, role)
    assert admin("DELETE", f"/security/groups/{group}").status_code == 204
    assert (is_over(acting), listed(admin, role)) == (True, 0)
    # What was read can be written again.
    found = admin.get(f"/security/roles/{role}").json["trust_policy"]
    assert admin("PATCH", f"/security/roles/{role}", {"trust_policy": found}).status_code == 200


def test_who_is_trusted_in_another_way_goes_on(admin: Api, viewer: Api) -> None:
    group = a_group(admin, viewer)
    acting = assume(viewer, new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("group", "ops"), ("user", viewer.user.id))))
    assert admin("DELETE", f"/security/groups/{group}/members/{viewer.user.id}").status_code == 204
    assert not is_over(acting)


def test_sessions_that_ended_count_no_more(admin: Api, viewer: Api) -> None:
    says = trust(("user", viewer.user.id))
    role, other = (new_role(admin, name, f"compute.{thing}.read", trusts=says) for name, thing in (("one", "instance"), ("two", "key_pair")))
    for number in range(20):
        assume(viewer, role, f"session {number}")
    assert admin("PATCH", f"/security/roles/{role}", {"trust_policy": {"principals": []}}).status_code == 200
    assume(viewer, other)
    assert (listed(admin, role), listed(admin, other)) == (0, 1)


TOKEN_ENDS: dict[str, tuple[str, dict[str, object] | None]] = {
    "revoked": ("DELETE", None),
    "switched off": ("PATCH", {"is_active": False}),
    "restricted": ("PATCH", {"scopes": ["compute:read"]}),
}


@pytest.mark.parametrize("way", TOKEN_ENDS)
@pytest.mark.parametrize("is_made_by_it", [False, True], ids=["by itself", "by what it made"])
def test_what_a_token_assumed_is_gone_with_it(admin: Api, viewer: Api, people: People, way: str, *, is_made_by_it: bool) -> None:
    role = new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("user", viewer.user.id)))
    secret, token = token_create(people.context(viewer.user), viewer.user, "first")
    first = Api(viewer.client, viewer.user, secret)
    assuming = Api(viewer.client, viewer.user, first.post("/auth/keys", {"name": "second"}).json["key"]) if is_made_by_it else first
    acting = assume(assuming, role)
    method, body = TOKEN_ENDS[way]
    assert viewer(method, f"/api/v1/api-keys/{token.id}", body).status_code in {200, 204}
    assert (is_over(acting), listed(admin, role)) == (True, 0)
    assert admin("DELETE", f"/security/roles/{role}").status_code == 204


def test_a_session_in_a_role_lasts_no_longer_than_the_token_that_assumed_it(admin: Api, viewer: Api, people: People) -> None:
    role = new_role(admin, "keys", trusts=trust(("user", viewer.user.id)), max_session_duration_hours=12)
    with people.sessions() as session, transaction(session):
        session.execute(update(ApiToken).where(ApiToken.user_id == viewer.user.id).values(expires_at=now() + timedelta(hours=2)))
    made = viewer.post(f"/security/roles/{role}/assume", {"session_name": "long", "duration": 12 * 3600})
    assert 7000 < made.json["expires_in"] <= 7200


def test_a_deleted_user_is_trusted_no_more(admin: Api, viewer: Api, api_for: Callable[..., Api]) -> None:
    role = new_role(admin, "keys", trusts=trust(("user", viewer.user.id)))
    assert api_for("platform_admin")("DELETE", f"/users/{viewer.user.id}?heir={admin.user.username}").status_code == 204
    assert admin.get(f"/security/roles/{role}").json["trust_policy"] == {"principals": []}


# -- what ends while somebody assumes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [
    lambda ctx, boss: user_sign_out(boss, ctx.principal.user_id),
    lambda ctx, boss: session_revoke(ctx, ctx.principal.credential.removeprefix("session:")),
], ids=["signed out everywhere", "signed out"])  # fmt: skip
def test_nothing_is_assumed_in_a_session_that_ended_meanwhile(
    admin: Api, viewer: Api, people: People, end: Callable[[Context, Context], object]
) -> None:
    role = new_role(admin, "keys", trusts=trust(("user", viewer.user.id)))
    ctx = people.signed_in(viewer.user)
    end(ctx, people.context(people.user("platform_admin")))
    # As when the request had been let in before that.
    with pytest.raises(Unauthorized):
        role_assume(ctx, role, "late")


def test_nothing_is_assumed_by_a_token_that_ended_meanwhile(admin: Api, viewer: Api, people: People) -> None:
    role = new_role(admin, "keys", trusts=trust(("user", viewer.user.id)))
    ctx = people.context(viewer.user)
    secret, token = token_create(ctx, viewer.user, "brief")
    found = token_user(ctx.db, secret, source_ip="")
    assert found is not None
    ctx.principal = found.principal
    token_revoke(people.context(viewer.user), token.id)
    with pytest.raises(Unauthorized):
        role_assume(ctx, role, "late")


def test_what_a_version_without_roles_looks_for_is_no_session_in_one(admin: Api, viewer: Api, people: People) -> None:
    role = new_role(admin, "keys", trusts=trust(("user", viewer.user.id)))
    secret = assume(viewer, role).token
    with people.sessions() as session:
        kept = session.scalars(select(ApiToken.token_hash).where(ApiToken.role_id == role)).one()
        assert session.scalar(select(ApiToken.id).where(ApiToken.token_hash == digest(secret))) is None
    # Nor is it the digest of anything else that could be sent.
    assert not set(kept) <= set("0123456789abcdef")
