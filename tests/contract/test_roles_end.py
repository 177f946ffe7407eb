"""Whatever ends the session, the token or the trust that a role was assumed by ends what was assumed, for good and before anything else is said."""

from collections.abc import Callable

import pytest
from flask import Flask

from portal.http.request import SESSION_COOKIE
from portal.identity import api_sessions
from portal.identity.accounts import session_replace, session_revoke, sign_out
from portal.identity.models import User, UserSession
from portal.identity.sign_in import Proof, sessions_end_others, sign_in
from portal.identity.sso import sessions_end
from portal.identity.users import user_sign_out
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import Unauthorized
from portal.security.role_sessions import role_assume
from tests.contract.test_lock_order import STAFF
from tests.contract.test_roles import admin, assume, is_over, new_role, trust, viewer
from tests.support.people import PASSWORD, People
from tests.support.web import Api

__all__ = ["SESSION_COOKIE", "Unauthorized", "admin", "assume", "transaction", "viewer"]


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
    sessions_end(entered.people.context(None), STAFF, subject="", sid="s-1")


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
