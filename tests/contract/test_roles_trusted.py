"""Trust alone decides who assumes a role: what simulator and lists say of it is what happens, and whoever is trusted needs to read nothing."""

from collections.abc import Callable

from flask import Flask

from portal.identity.iam import IamAttachment, IamRole
from portal.kernel.db import db, transaction
from portal.kernel.limits import user_lines
from portal.kernel.policy_documents import VERSION
from portal.security.role_sessions import ASSUME
from tests.contract.test_iam import allow, attach, write
from tests.contract.test_roles import admin, assume, is_over, new_role, trust, viewer
from tests.support.people import People
from tests.support.web import Api, Queries, browser

__all__ = ["admin", "viewer"]


def robot_of(admin: Api) -> tuple[str, Api]:
    """The id of a service account without a role, and its client."""
    account = admin.post("/service-accounts", {"name": "robot"}).json["id"]
    return account, Api(admin.client, admin.user, admin.post(f"/service-accounts/{account}/keys", {"name": "k"}).json["key"])


def said(admin: Api, somebody: str, role: str) -> tuple[bool, bool, bool]:
    """Whether somebody may assume a role, as the simulator, the list of who can and the list of what they can say."""
    asked = {"user": somebody, "action": ASSUME, "resource": f"security.role/{role}"}
    simulated = admin.post("/security/policies/simulate", asked)
    assert simulated.status_code == 200, simulated.json
    who = admin.get(f"/security/who-can?action={ASSUME}&resource=security.role/{role}").json["results"]
    what = admin.get(f"/security/what-can?user={somebody}&resource=security.role/{role}").json["results"]
    may = {row["action"]: row["decision"] for row in what}[ASSUME]
    return simulated.json["decision"] == "allow", somebody in {row["username"] for row in who}, may == "allow"


def test_what_is_said_of_assuming_is_what_happens(admin: Api, viewer: Api) -> None:
    _, robot = robot_of(admin)
    name, them = viewer.user.username, ("user", viewer.user.id)
    role = new_role(admin, "ours", "compute.instance.read", trusts=trust(("service_account", "robot")))
    denied = new_role(admin, "denied", trusts=trust(them))
    attach(admin, write(admin, "not-this", allow(ASSUME, effect="Deny", resource=f"security.role/{denied}")), viewer.user.id)
    for api, somebody, wanted, happens in (
        (viewer, name, role, False), (robot, "robot", role, True), (viewer, name, denied, False), (viewer, name, new_role(admin, "theirs", trusts=trust(them)), True),
    ):  # fmt: skip
        assert said(admin, somebody, wanted) == (happens,) * 3
        assert api.post(f"/security/roles/{wanted}/assume", {"session_name": "x"}).status_code == (201 if happens else 403)


def test_the_statement_that_decides_is_the_trust(admin: Api, viewer: Api) -> None:
    role = new_role(admin, "ours")
    asked = {"user": viewer.user.username, "action": ASSUME, "resource": f"security.role/{role}"}
    found = admin.post("/security/policies/simulate", asked).json
    assert ("the trust of role ours" in found["because"], next(step["statement"] for step in found["path"] if not step["mismatch"])) == (
        True,
        "Trust",
    )
    # Neither from within a role, nor one that is built in, nor none in particular.
    other = new_role(admin, "other", "security.role.*", trusts=trust(("user", viewer.user.id)))
    for api, more in ((admin, {"user": other}), (viewer, {"resource": "security.role/role-viewer"})):
        answer = api.post("/security/policies/simulate", {**asked, **more})
        assert answer.json.get("decision") == "deny", answer.json
    assert admin.post("/security/policies/simulate", {**asked, "resource": ""}).status_code == 400
    assert admin.get(f"/security/who-can?action={ASSUME}").status_code == 400
    assert ASSUME not in {row["action"] for row in admin.get(f"/security/what-can?user={viewer.user.username}").json["results"]}


def test_whoever_is_trusted_needs_to_read_nothing(app: Flask, admin: Api, viewer: Api, people: People) -> None:
    account, robot = robot_of(admin)
    role = new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("service_account", account), ("user", viewer.user.id)))
    one, two, three = assume(robot, role, "one"), assume(robot, role, "two"), assume(viewer, role, "three")
    base = f"/security/roles/{role}/sessions"
    rows = robot.get(base).json["results"]
    assert [row["session_name"] for row in rows] == ["two", "one"]
    assert robot("DELETE", f"{base}/{rows[0]['session_id']}").status_code == 204
    assert (is_over(two), is_over(one)) == (True, False)
    # What acts in it sees and ends itself.
    assert [row["session_name"] for row in one.get(base).json["results"]] == ["one"]
    assert one("DELETE", f"{base}/{rows[1]['session_id']}").status_code == 204
    assert (is_over(one), is_over(three)) == (True, False)
    document = {"Version": VERSION, "Statement": [{"Effect": "Deny", "Action": "security.role.read", "Resource": "*"}]}
    attach(admin, write(admin, "no-roles", document), viewer.user.id)
    page = browser(app, people, viewer.user).get(f"/security/roles/{role}/assume")
    assert (page.status_code, viewer.get(f"/security/roles/{role}").status_code) == (200, 404)


def test_who_else_acts_in_a_role_and_from_where_is_for_whoever_may_end_it(
    admin: Api, viewer: Api, api_for: Callable[..., Api], app: Flask, people: People
) -> None:
    role = new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("user", viewer.user.id)))
    assume(viewer, role, "at night").get("/compute/key-pairs")
    other, base = api_for("viewer"), f"/security/roles/{role}/sessions"
    assert (other.get(base).json["count"], "at night" in browser(app, people, other.user).get(base).text) == (0, False)
    for api in (viewer, admin):
        assert [row["last_used_ip"] for row in api.get(base).json["results"]] == ["127.0.0.1"]
        assert "at night" in browser(app, people, api.user).get(base).text


def test_sessions_in_roles_are_no_keys(admin: Api, viewer: Api, people: People) -> None:
    role = new_role(admin, "keys", trusts=trust(("user", viewer.user.id)))

    def used() -> int:
        return next(each.used for each in user_lines(people.context(viewer.user), viewer.user.id) if each.dimension == "api_keys")

    before = used()
    assume(viewer, role)
    assert used() == before


def many_roles(people: People, admin: Api, somebody: str, count: int) -> None:
    """So many more roles that trust somebody and may do something."""
    policy = write(admin, f"start-{count}", allow("compute.instance.start"))
    with people.sessions() as session, transaction(session):
        for number in range(count):
            role = IamRole(id=f"role-{count}-{number:03}", name=f"many-{count}-{number:03}", project_id=people.project_id)
            role.trust_policy = trust(("service_account", somebody))
            session.add_all([role, IamAttachment(policy_id=policy, principal_type="role", principal_id=role.id)])


def test_who_can_looks_at_every_role(admin: Api, people: People) -> None:
    account, _ = robot_of(admin)
    many_roles(people, admin, account, 205)
    rows = admin.get("/security/who-can?action=compute.instance.start").json["results"]
    assert "by assuming role many-205-204" in {row["via"] for row in rows}


def test_no_query_more_for_more_roles(admin: Api, people: People, app: Flask) -> None:
    account, _ = robot_of(admin)
    with app.app_context():
        queries = Queries(db.engine)

    def asked() -> tuple[int, int]:
        counts = []
        for act in (
            lambda: admin.post(f"/service-accounts/{account}/keys", {"name": "more"}).status_code == 201,
            lambda: admin.get("/security/who-can?action=compute.instance.start").status_code == 200,
        ):
            # What each may do is compiled first.
            act()
            with queries:
                assert act()
            counts.append(queries.count)
        return counts[0], counts[1]

    many_roles(people, admin, account, 1)
    few = asked()
    many_roles(people, admin, account, 12)
    assert asked() == few
