"""What is refused before anything acts, in the audit log: pages and queries that somebody may not see, and credentials that hold no more."""

import logging
import time
from collections import OrderedDict
from contextlib import suppress
from threading import Lock

from flask import request
from sqlalchemy.exc import SQLAlchemyError

from portal.http.request import context, signed_in, token_from_header
from portal.identity.models import digest
from portal.identity.tokens import token_behind
from portal.kernel import audit
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import Forbidden, InvalidRequest, NotFound, PortalError, Unauthorized

READ, CREDENTIAL = "core.request.refuse", "identity.credential.refuse"
# The same credential, or any unknown one from the same address, is told of once in this time by each process.
AGAIN_S = 60.0
KEEP = 4096

log = logging.getLogger("portal.http")


class ForgedForm(InvalidRequest):
    """A form that does not carry the mark that the portal gave it: it is old, or a foreign page sent it."""


class _Told:
    """What was told lately, the oldest forgotten first."""

    def __init__(self) -> None:
        self._at: OrderedDict[str, float] = OrderedDict()
        self._lock = Lock()

    def is_new(self, what: str) -> bool:
        """Whether nothing was told of it lately; from now on something was."""
        moment = time.monotonic()
        with self._lock:
            if moment - self._at.get(what, -AGAIN_S) < AGAIN_S:
                return False
            self._at[what] = moment
            self._at.move_to_end(what)
            while len(self._at) > KEEP:
                self._at.popitem(last=False)
        return True


_told = _Told()


def note(error: PortalError) -> None:
    """Write a refusal down that no operation has written; where that fails, the answer is a refusal all the same."""
    try:
        if isinstance(error, Forbidden) and not error.is_audited:
            _note_forbidden(error)
        elif isinstance(error, ForgedForm):
            _note_forged()
        elif isinstance(error, Unauthorized) and not error.is_audited and signed_in() is None and (token := token_from_header()):
            _note_credential(token)
    except SQLAlchemyError:
        log.exception("a refusal is not in the audit log")


def _context() -> Context:
    """The request's context; a project that it names and that is not theirs is none."""
    with suppress(NotFound):
        context()
    ctx = context()
    ctx.db.rollback()
    return ctx


def _note_forbidden(error: Forbidden) -> None:
    ctx = _context()
    action, resource = str(error.details.get("action") or READ), str(error.details.get("resource") or request.path)
    details = {**error.details, "method": request.method, "path": request.path[:512]}
    with transaction(ctx.db):
        about = audit.Subject(action.rpartition(".")[0], name=resource[:255], project_id=ctx.project_id)
        audit.record(ctx, action, about, status="denied", error=error.message, details=details)
    error.is_audited = True


def _note_forged() -> None:
    ctx = _context()
    if not _told.is_new(f"form of {ctx.principal.user_id or ctx.source_ip}"):
        return
    about = audit.Subject("core.request", name=request.path[:255], project_id=ctx.project_id)
    details = {"method": request.method, "path": request.path[:512], "origin": request.headers.get("Origin", "")[:255]}
    with transaction(ctx.db):
        audit.record(ctx, READ, about, status="failure", error="The form carried no valid mark of this portal.", details=details)


def _note_credential(token: str) -> None:
    ctx = _context()
    found = token_behind(ctx.db, token)
    if not _told.is_new(digest(token) if found else f"unknown from {ctx.source_ip}"):
        return
    with transaction(ctx.db):
        about = audit.Subject("identity.api_token", found.token_id, found.username) if found else audit.Subject("identity.api_token", name="unknown")
        why = found.why if found else "unknown, revoked or tampered with"
        audit.record(ctx, CREDENTIAL, about, status="failure", error=f"The credential was refused: {why}.", details={"path": request.path[:512]})
