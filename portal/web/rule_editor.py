"""Changing the rules of a security group on its page. Everything works as plain forms; with scripts the tab is exchanged in place."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel.context import Context
from portal.kernel.declare import Operation
from portal.kernel.errors import NotFound, PortalError
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.networking.changes import wrong
from portal.networking.rules import TEMPLATES
from portal.networking.security_groups import (
    SECURITY_GROUP,
    security_group_add_rule,
    security_group_apply_template,
    security_group_remove_rule,
    security_group_update_rule,
)
from portal.networking.view import rules_shown
from portal.web.derived import base_of
from portal.web.page import field_errors, form_status, go, is_fragment, render
from portal.web.resource_pages import detail
from portal.web.rule_form import FIELDS, Typed, reading_of

pages = Blueprint("rules", __name__)
BASE = "/networking/security-groups/<security_group_id>/rules"


@pages.post(f"{BASE}/reading")
@access(Access.SIGNED_IN)
def reading(security_group_id: str) -> ResponseReturnValue:
    """What the line says as it is now; nothing is changed."""
    find(context(), SECURITY_GROUP, security_group_id)
    return render("networking/security_group/_reading.html", reading=reading_of(Typed.read(request.form)))


@pages.post(BASE)
@access(Access.SIGNED_IN)
def add(security_group_id: str) -> ResponseReturnValue:
    """Add what the line says."""
    typed = Typed.read(request.form)

    def change(ctx: Context) -> str:
        before = {rule.id for rule in find(ctx, SECURITY_GROUP, security_group_id).rules}
        first = typed.specs()[0]
        if typed.service in TEMPLATES:
            whom = {"allowed_source": typed.whom, "direction": typed.direction, "description": typed.description}
            outcome = run(ctx, security_group_apply_template, security_group_id, {"template": typed.service, **whom}, strict=False)
        else:
            ports = {"from_port": first.from_port, "to_port": first.to_port, "icmp_type": first.icmp_type}
            whom = {"cidr": first.cidr, "referenced_group": first.group_id, "direction": typed.direction, "description": typed.description}
            given = {name: value for name, value in {**ports, **whom}.items() if value not in (None, "")}
            outcome = run(ctx, security_group_add_rule, security_group_id, {"protocol": first.protocol.value, **given}, strict=False)
        added = [each["sentence"] for each in rules_shown(ctx, outcome.row) if each["rule_id"] not in before]
        return f"Added: {' '.join(added)}" if added else "Nothing to add: these rules are there already."

    return _changed(security_group_id, change, typed=typed, reading=reading_of(typed))


@pages.post(f"{BASE}/<rule_id>")
@access(Access.SIGNED_IN)
def update(security_group_id: str, rule_id: str) -> ResponseReturnValue:
    """Change the ports, the range or the description of a rule."""
    typed = Typed.read(request.form)

    def change(ctx: Context) -> str:
        rule = next((each for each in find(ctx, SECURITY_GROUP, security_group_id).rules if each.id == rule_id), None)
        if rule is None:
            raise NotFound("The rule is gone.")
        wanted = replace(typed, direction=rule.direction, service=rule.protocol, whom=typed.whom or rule.cidr or "members").specs()[0]
        if rule.cidr and wanted.group_id:
            raise wrong("whom", f"must be a range, an address or anywhere; add another rule for members of {wanted.group_id}.")
        if rule.icmp_type is not None and wanted.icmp_type is None:
            raise wrong("ports", "must be a type; add another rule for every type.")
        given = {"from_port": wanted.from_port, "to_port": wanted.to_port, "icmp_type": wanted.icmp_type, "cidr": wanted.cidr}
        given = {name: value for name, value in given.items() if value not in (None, "")}
        _run(ctx, security_group_update_rule, security_group_id, rule_id, description=typed.description, **given)
        return "The rule is changed."

    return _changed(security_group_id, change, editing=rule_id, edited=typed)


@pages.post(f"{BASE}/<rule_id>/switch")
@access(Access.SIGNED_IN)
def switch(security_group_id: str, rule_id: str) -> ResponseReturnValue:
    """Switch a rule on or off."""
    is_on = request.form.get("is_enabled") == "y"

    def change(ctx: Context) -> str:
        _run(ctx, security_group_update_rule, security_group_id, rule_id, is_enabled=is_on)
        return f"The rule is switched {'on' if is_on else 'off'}."

    return _changed(security_group_id, change)


@pages.post(f"{BASE}/<rule_id>/remove")
@access(Access.SIGNED_IN)
def remove(security_group_id: str, rule_id: str) -> ResponseReturnValue:
    """Remove a rule."""

    def change(ctx: Context) -> str:
        told = {each["rule_id"]: each["sentence"] for each in rules_shown(ctx, find(ctx, SECURITY_GROUP, security_group_id))}
        _run(ctx, security_group_remove_rule, security_group_id, rule_id)
        return f"Removed: {told.get(rule_id, '')}"

    return _changed(security_group_id, change)


def _run(ctx: Context, op: Operation, security_group_id: str, rule_id: str, **given: Any) -> None:
    run(ctx, op, security_group_id, {"rule_id": rule_id[:64], **given}, strict=False)


def _changed(security_group_id: str, change: Callable[[Context], str], **form: Any) -> ResponseReturnValue:
    """The tab after a change, or with what was wrong with it."""
    ctx = context()
    try:
        said = change(replace(ctx, idempotency_key=request.form.get("idempotency_key", "")[:255]))
    except PortalError as error:
        ctx.db.rollback()
        found, message = field_errors(error, (*FIELDS, *FIELDS.values()))
        errors = {FIELDS.get(name, name): texts for name, texts in found.items()}
        return detail(
            ctx, SECURITY_GROUP, find(ctx, SECURITY_GROUP, security_group_id), "rules", form_status(error), **form, errors=errors, message=message
        )
    if not is_fragment():
        return go(f"{base_of(SECURITY_GROUP)}/{security_group_id}/rules", said)
    return detail(ctx, SECURITY_GROUP, find(ctx, SECURITY_GROUP, security_group_id), "rules", said=said)
