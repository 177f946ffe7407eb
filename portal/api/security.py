"""Endpoints of access control that are not derived: members of groups, attachments and versions of policies, the simulator."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from flask import request
from flask.typing import ResponseReturnValue
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from portal.api import body as io
from portal.api.endpoints import Endpoint, Query, Schema
from portal.api.resources import PAGING, aliases, link, list_schema, only
from portal.api.schemas import MAYBE_TEXT, NUMBER, TEXT, WHEN, YES, read, thing
from portal.http.listing import flag
from portal.http.request import context
from portal.kernel.authz import Decision, Step
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.security import simulator
from portal.security.effects import review
from portal.security.groups import GROUP, group_add_member, group_members, group_remove_member
from portal.security.policies import POLICY, holders_of
from portal.security.simulator import Question, simulate, target_named, what_can, who_can
from portal.security.unused import PERIOD, unused

Short = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
MEMBER = thing(user_id=TEXT, username=TEXT, created_at=WHEN)
ATTACHMENT = thing(principal_type=TEXT, principal_id=TEXT, principal_name=TEXT, created_by=TEXT, created_at=WHEN)
VERSION = thing(number=NUMBER, document={"type": "object"}, username=TEXT, created_at=WHEN)
STEP = thing(policy=TEXT, via=TEXT, project_id=MAYBE_TEXT, statement=TEXT, effect=TEXT, applies=YES, mismatch=TEXT)
DECISION = thing(action=TEXT, decision={"type": "string", "enum": ["allow", "deny"]}, policy=TEXT, statement=TEXT, because=TEXT)
SIMULATION = {**DECISION, "properties": {**DECISION["properties"], "path": {"type": "array", "items": STEP}, "user": TEXT, "resource": TEXT}}
PROBLEM = thing(path=TEXT, message=TEXT)
ACTIONS: Schema = {"type": "array", "items": TEXT}
EFFECT = thing(user_id=TEXT, username=TEXT, gained=ACTIONS, lost=ACTIONS, changed=ACTIONS)
REVIEW = thing(
    is_valid=YES, problems={"type": "array", "items": PROBLEM}, warnings={"type": "array", "items": PROBLEM}, holders=NUMBER, compared=NUMBER,
    effects={"type": ["array", "null"], "items": EFFECT},
)  # fmt: skip
UNUSED = thing(subject=TEXT, days=NUMBER, used=ACTIONS, unused=ACTIONS, document={"type": ["object", "null"]})
HOLDER = thing(user_id=TEXT, username=TEXT, policy=TEXT, statement=TEXT, via=TEXT)


IMAGINED = (
    Query("ip", "From where they ask, if conditions look at that; nothing for the caller's address."),
    Query("mfa", "With a second factor.", YES),
    Query("credential", "How they come.", {"type": "string", "enum": list(simulator.CREDENTIALS)}),
)


class Circumstances(BaseModel):
    """What is known of the request that is imagined."""

    model_config = ConfigDict(extra="forbid")
    ip: Short = ""
    mfa: bool = False
    inputs: dict[str, Any] = Field(default_factory=dict)
    credential: Literal["session", "token", "oauth"] = "session"
    time: AwareDatetime | None = Field(default=None, description="Nothing means now.")

    def imagined(self) -> simulator.Circumstances:
        """What the simulator makes of it."""
        return simulator.Circumstances(self.ip, self.mfa, self.inputs, self.credential, self.time)


class SimulationInput(BaseModel):
    """A question to the simulator."""

    model_config = ConfigDict(extra="forbid")
    user: Short = Field(description="Name or id; of a role its id or role/name.")
    action: Short
    resource: Short = Field("", description="Type and id, such as compute.instance/i-0123; nothing for the project.")
    context: Circumstances = Field(default_factory=Circumstances)


class DocumentInput(BaseModel):
    """A policy's document as it might be saved."""

    model_config = ConfigDict(extra="forbid")
    document: Any = Field(description="Version and Statement.")
    policy_id: Short = Field("", description="The policy whose document it would be, by id or name; nothing for a new one.")


class MemberInput(BaseModel):
    """Who is to be in a group."""

    model_config = ConfigDict(extra="forbid")
    user_id: Short = Field(description="Name or id.")


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    groups, policies = "/security/groups/{group_id}", "/security/policies/{policy_id}"
    yield Endpoint("GET", f"{groups}/members", "security.groups.members", members, "Members of a group", GROUP.plural, {200: list_schema(MEMBER)}, (403, 404),
                   aliases=aliases(GROUP, "/{group_id}/members"))  # fmt: skip
    yield Endpoint("POST", f"{groups}/members", "security.groups.members.add", member_add, "Put a member of the project into the group", GROUP.plural,
                   {200: list_schema(MEMBER)}, (403, 404, 409, 412), body=MemberInput.model_json_schema(),
                   aliases=aliases(GROUP, "/{group_id}/members"))  # fmt: skip
    yield Endpoint("DELETE", f"{groups}/members/{{user_id}}", "security.groups.members.delete", member_remove, "Take a user out of the group", GROUP.plural,
                   {204: None}, (403, 404, 409, 412), aliases=aliases(GROUP, "/{group_id}/members/{user_id}"))  # fmt: skip
    yield Endpoint("GET", f"{policies}/attachments", "security.policies.attachments", attachments, "To whom a policy is given", POLICY.plural,
                   {200: list_schema(ATTACHMENT)}, (403, 404), aliases=aliases(POLICY, "/{policy_id}/attachments"))  # fmt: skip
    yield Endpoint("GET", f"{policies}/versions", "security.policies.versions", versions, "A policy's document as it was, newest first", POLICY.plural,
                   {200: list_schema(VERSION)}, (403, 404), aliases=aliases(POLICY, "/{policy_id}/versions"))  # fmt: skip
    yield Endpoint("POST", "/security/policies/simulate", "security.policies.simulate", simulation, "May somebody do something, and which statement decides?",
                   POLICY.plural, {200: SIMULATION}, (403, 404), body=SimulationInput.model_json_schema(ref_template="#/components/schemas/{model}"),
                   aliases=aliases(POLICY, "/simulate"))  # fmt: skip
    yield Endpoint("POST", "/security/policies/validate", "security.policies.validate", validation,
                   "What is wrong or odd about a document, and what it would change for those who hold the policy", POLICY.plural, {200: REVIEW}, (403, 404),
                   body=DocumentInput.model_json_schema(), aliases=aliases(POLICY, "/validate"))  # fmt: skip
    named = Query("resource", "Type and id, such as compute.instance/i-0123; nothing for the project.")
    yield Endpoint("GET", "/security/who-can", "security.who-can", who, "Who may do an action, among 500 users at a time", POLICY.plural,
                   {200: list_schema(HOLDER)}, (403, 404),
                   query=(Query("action", "Such as compute.instance.stop.", required=True), named, *IMAGINED, PAGING[1]))  # fmt: skip
    yield Endpoint("GET", "/security/what-can", "security.what-can", what, "Everything that somebody may and may not do", POLICY.plural,
                   {200: list_schema(DECISION)}, (403, 404), query=(Query("user", "Name or id; of a role its id or role/name.", required=True), named))  # fmt: skip
    yield Endpoint("GET", "/security/unused-permissions", "security.unused-permissions", unused_permissions,
                   "What a user or a policy may do and nobody did for 90 days; reading is not audited and never called unused", POLICY.plural,
                   {200: UNUSED}, (403, 404), query=(Query("user", "Name or id; nothing means oneself."), Query("policy", "Id or name.")))  # fmt: skip


def unused_permissions() -> ResponseReturnValue:
    """What is held and not used."""
    only("user", "policy")
    found = unused(context(), user=request.args.get("user", ""), policy=request.args.get("policy", ""))
    return io.answer({
        "subject": found.subject, "days": PERIOD.days, "used": list(found.used), "unused": list(found.unused), "document": found.document,
    })  # fmt: skip


def members(group_id: str) -> ResponseReturnValue:
    """Members."""
    found = group_members(context(), find(context(), GROUP, group_id))
    shown = [{"user_id": user.id, "username": user.username, "created_at": io.moment(at)} for user, at in found]
    return io.answer(io.page_of(shown, count=len(shown)))


def member_add(group_id: str) -> ResponseReturnValue:
    """Add one."""
    given: MemberInput = read(MemberInput)
    run(context(), group_add_member, group_id, {"user": given.user_id})
    return members(group_id)


def member_remove(group_id: str, user_id: str) -> ResponseReturnValue:
    """Remove one."""
    run(context(), group_remove_member, group_id, {"user": user_id})
    return io.empty()


def attachments(policy_id: str) -> ResponseReturnValue:
    """Who holds it."""
    ctx = context()
    policy = find(ctx, POLICY, policy_id)
    shown = [
        {"principal_type": row.principal_type, "principal_id": row.principal_id, "principal_name": name,
         "created_by": row.created_by, "created_at": io.moment(row.created_at)}
        for row, name in holders_of(ctx, policy)
    ]  # fmt: skip
    return io.answer(io.page_of(shown, count=len(shown)))


def versions(policy_id: str) -> ResponseReturnValue:
    """Its past."""
    rows = find(context(), POLICY, policy_id).versions
    shown = [{"number": row.number, "document": row.document, "username": row.username, "created_at": io.moment(row.created_at)} for row in rows]
    return io.answer(io.page_of(shown, count=len(shown)))


def simulation() -> ResponseReturnValue:
    """One question."""
    given: SimulationInput = read(SimulationInput)
    found = simulate(context(), Question(given.user, given.action, given.resource, given.context.imagined()))
    path = [_step(step) for step in found.path]
    return io.answer({**_decision(found.decision), "path": path, "user": found.name, "resource": given.resource})


def validation() -> ResponseReturnValue:
    """A document before it is saved."""
    given: DocumentInput = read(DocumentInput)
    found = review(context(), given.document, given.policy_id)
    effects = None if found.effects is None else [asdict(each) for each in found.effects]
    problems, warnings = ([asdict(each) for each in part] for part in (found.problems, found.warnings))
    return io.answer(
        {
            "is_valid": not problems,
            "problems": problems,
            "warnings": warnings,
            "holders": found.holders,
            "compared": found.compared,
            "effects": effects,
        }
    )


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "action": decision.action, "decision": "allow" if decision.allowed else "deny", "policy": decision.policy, "statement": decision.statement,
        "because": decision.because,
    }  # fmt: skip


def _step(step: Step) -> dict[str, Any]:
    return {
        "policy": step.policy, "via": step.via, "project_id": step.project_id, "statement": step.statement, "effect": step.effect,
        "applies": not step.mismatch, "mismatch": step.mismatch,
    }  # fmt: skip


def who() -> ResponseReturnValue:
    """Who may, of the users of a page."""
    only("action", "resource", "cursor", *(each.name for each in IMAGINED))
    ctx, args = context(), request.args
    action, under = (
        args.get("action", ""),
        simulator.Circumstances(args.get("ip", ""), flag(args, "mfa"), credential=args.get("credential", "session")),
    )
    able = who_can(ctx, action, target_named(ctx, args.get("resource", ""), action), under, after=args.get("cursor", ""))
    shown = [
        {
            "user_id": each.user.id,
            "username": each.user.username,
            "policy": each.decision.policy,
            "statement": each.decision.statement,
            "via": each.via,
        }
        for each in able.found
    ]
    return io.answer(io.page_of(shown, count=len(shown), following=link(able.next_after)))


def what() -> ResponseReturnValue:
    """Everything that somebody may."""
    shown = [_decision(each) for each in what_can(context(), request.args.get("user", ""), request.args.get("resource", ""))]
    return io.answer(io.page_of(shown, count=len(shown)))
