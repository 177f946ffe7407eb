"""How refusals look: JSON for scripts, a page for people, and the same words in both."""

import errno
import logging
from collections.abc import Callable

from flask import Flask, current_app, g, jsonify, make_response, request
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError
from sqlalchemy.exc import OperationalError
from werkzeug.exceptions import ClientDisconnected, HTTPException, MethodNotAllowed, RequestEntityTooLarge

from portal.engines.object_ports import NoRoom
from portal.engines.ports import EngineError
from portal.http import refusals
from portal.http.guard import takes_no_cookie
from portal.http.request import session_secret
from portal.kernel.db import DISK_IS_FULL, out_of_service
from portal.kernel.errors import ERRORS, InsufficientStorage, InvalidRequest, PortalError, RateLimited, TooLarge, Unauthorized, Unavailable

log = logging.getLogger("portal.http")
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
CODE_OF_STATUS = {error.status: error.code for error in reversed(ERRORS)} | {404: "NOT_FOUND", 409: "CONFLICT", 429: "RATE_LIMITED"}
UNEXPECTED = "Something unexpected went wrong in the portal. Nothing was changed by this request. Give its id to an administrator."

PageRenderer = Callable[[PortalError], ResponseReturnValue]


def install(app: Flask, render_page: PageRenderer) -> None:
    """Answer every error; `render_page` makes the page that people see."""

    def answer(error: PortalError) -> ResponseReturnValue:
        g.retry_after_s = error.retry_after_s
        refusals.note(error)
        return as_json(error) if wants_json() else render_page(error)

    def portal_error(error: PortalError) -> ResponseReturnValue:
        return answer(error)

    def http_error(error: HTTPException) -> ResponseReturnValue:
        if error.response is not None and error.code is not None and error.code < 400:  # noqa: PLR2004 - a redirect
            return error.response
        response = make_response(answer(from_http(error)))
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response

    def database_error(error: OperationalError) -> ResponseReturnValue:
        log.error("database: %s", error.orig, exc_info=error)
        return answer(Unavailable(out_of_service(error)))

    def system_error(error: OSError) -> ResponseReturnValue:
        if error.errno not in NO_SPACE:
            return unexpected(error)
        log.error("the disk is full", exc_info=error)
        return answer(Unavailable(DISK_IS_FULL))

    def unexpected(error: Exception) -> ResponseReturnValue:
        log.error("unhandled", exc_info=error)
        return answer(PortalError(UNEXPECTED))

    app.register_error_handler(PortalError, portal_error)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(OperationalError, database_error)
    app.register_error_handler(EngineError, lambda error: answer(from_engine(error)))
    app.register_error_handler(OSError, system_error)
    app.register_error_handler(Exception, unexpected)


def from_engine(error: EngineError) -> PortalError:
    """What whoever asks is told where an engine failed."""
    log.error("engine: %s", error.message)
    return InsufficientStorage(error.message) if isinstance(error, NoRoom) else Unavailable(error.message)


def wants_json() -> bool:
    """Whether the answer is for a script."""
    return (
        request.path.startswith("/api")
        or takes_no_cookie(current_app, request.endpoint)
        or request.accept_mimetypes.best_match(["text/html", "application/json"], "text/html") == "application/json"
    )


def body_of(error: PortalError, request_id: str) -> dict[str, object]:
    """The error body of the API: code, message, details per field, request id."""
    return {"error": error.code, "message": error.message, "details": error.details, "request_id": request_id}


def as_json(error: PortalError) -> ResponseReturnValue:
    """The answer of the API to an error."""
    response = jsonify(body_of(error, g.get("request_id", "")))
    response.status_code = error.status
    if isinstance(error, Unauthorized):
        by_bearer = request.headers.get("Authorization", "").lower().startswith("bearer ")
        response.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if by_bearer else "Token"
        if session_secret():
            response.headers["X-Session-Expired"] = "1"
    return response


def from_http(error: HTTPException) -> PortalError:
    """One of Werkzeug's errors in the portal's words."""
    status = error.code or 500
    if isinstance(error, CSRFError):
        return refusals.ForgedForm("The form is too old or did not come from this portal. Load the page again; what you typed is kept.")
    if isinstance(error, ClientDisconnected):
        return InvalidRequest("The body broke off before its end. Nothing was kept; send it again.")
    if isinstance(error, RequestEntityTooLarge):
        return TooLarge("The request body is larger than this endpoint accepts.")
    if status == RateLimited.status:
        limited = RateLimited(f"Too many requests: {error.description}. Wait a moment and try again.")
        limited.retry_after_s = 60
        return limited
    words = {404: "There is nothing at this address.", 405: f"{request.method} is not possible here.", 400: "The request is malformed."}
    found = PortalError(words.get(status, error.description or error.name))
    found.code, found.status = CODE_OF_STATUS.get(status, "INVALID_REQUEST" if status < 500 else "INTERNAL_ERROR"), status  # noqa: PLR2004 - ours or theirs
    return found
