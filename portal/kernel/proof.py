"""Proving again who one is, for what would hurt most in the hands of whoever finds a screen that somebody left."""

from datetime import timedelta

from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import ConfirmationRequired

OF_SESSION = "session:"
# Changing who may do what, and whose the accounts are.
SERVICES, LEVELS = frozenset({"identity", "security"}), frozenset({"manage", "platform"})


def require_proof(ctx: Context) -> None:
    """Raise ConfirmationRequired unless who acts in a session has proved lately who they are; what is no session has no person to ask."""
    who = ctx.principal
    if not who.credential.startswith(OF_SESSION):
        return
    if who.proved_at is None or who.proved_at + timedelta(minutes=ctx.settings.confirm_minutes) <= now():
        raise ConfirmationRequired("Confirm that it is you; your last proof of that is too old for this.")


def require_proof_for(ctx: Context, action: str) -> None:
    """As `require_proof`, if the action is one that asks for it."""
    if action.partition(".")[0] in SERVICES and ctx.registry.permissions.get(action) in LEVELS:
        require_proof(ctx)
