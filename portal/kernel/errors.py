"""Every refusal the portal can give, and the one table from error to HTTP.

A message names the cause, the limit and the way out, and is fit to be shown to whoever asked.
"""

from collections.abc import Mapping, Sequence


class PortalError(Exception):
    """Something was refused or failed; subclasses fix the code and the HTTP status."""

    code = "INTERNAL_ERROR"
    status = 500
    retry_after_s: int | None = None

    def __init__(self, message: str, *, details: Mapping[str, object] | None = None) -> None:
        """`details` maps a field or fact to its explanation."""
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = dict(details or {})
        # Whether the audit log tells of it already.
        self.is_audited = False


class InvalidRequest(PortalError):
    """The request is malformed or a field has a value that is not accepted."""

    code = "INVALID_REQUEST"
    status = 400

    @classmethod
    def fields(cls, problems: Mapping[str, Sequence[str]]) -> "InvalidRequest":
        """Several fields at once: field name → what is wrong with it."""
        text = "; ".join(f"{name}: {' '.join(texts)}" for name, texts in problems.items())
        return cls(text, details={name: list(texts) for name, texts in problems.items()})


class Unauthorized(PortalError):
    """No credential, or one that is wrong, expired or revoked."""

    code = "UNAUTHORIZED"
    status = 401


class Forbidden(PortalError):
    """The caller may see the target but may not do this to it."""

    code = "FORBIDDEN"
    status = 403


class ConfirmationRequired(PortalError):
    """The action is dangerous and the caller's last proof of who they are is too old: confirm, then do it again."""

    code = "CONFIRMATION_REQUIRED"
    status = 403


class NotFound(PortalError):
    """Unknown, deleted, or not the caller's to see: the three look the same."""

    code = "NOT_FOUND"
    status = 404


class MethodNotAllowed(PortalError):
    """The path exists, the method does not."""

    code = "METHOD_NOT_ALLOWED"
    status = 405


class Conflict(PortalError):
    """The request contradicts what is there: duplicate name, still in use, protected, changed meanwhile."""

    code = "CONFLICT"
    status = 409


class StateConflict(Conflict):
    """The target is in a state that does not allow the operation."""


class PreconditionFailed(PortalError):
    """If-Match names another version than the present one."""

    code = "PRECONDITION_FAILED"
    status = 412


class TooLarge(PortalError):
    """The body is larger than the limit."""

    code = "TOO_LARGE"
    status = 413


class UnsupportedMedia(PortalError):
    """The body is of a media type the endpoint does not read."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


def request_url(dimension: str) -> str:
    """Where in the console more of a quota is asked for."""
    return f"/quotas/requests/new?dimension={dimension}"


class QuotaExceeded(PortalError):
    """The project, or the user across projects, has no room left in a quota dimension."""

    code = "QUOTA_EXCEEDED"
    status = 429

    def __init__(self, dimension: str, *, limit: int, used: int, requested: int, of_user: bool = False) -> None:
        """All three figures are in the unit of the dimension."""
        figures = f"{used} of {limit} used, {requested} more requested."
        details: dict[str, object] = {"dimension": dimension, "limit": limit, "used": used, "requested": requested}
        if of_user:
            message = f"Your own limit for {dimension}: {figures} Delete something of yours or ask an administrator to raise it."
            super().__init__(message, details={**details, "scope": "user"})
        else:
            url = request_url(dimension)
            message = f"Quota {dimension}: {figures} Delete something, or request more at {url}."
            super().__init__(message, details={**details, "scope": "project", "request_url": url})


class RateLimited(PortalError):
    """Too many requests in the present window."""

    code = "RATE_LIMITED"
    status = 429


class Unavailable(PortalError):
    """Something the request needs is not there at the moment."""

    code = "SERVICE_UNAVAILABLE"
    status = 503


class InsufficientStorage(PortalError):
    """There is no room on the disks of the installation."""

    code = "INSUFFICIENT_STORAGE"
    status = 507


ERRORS: tuple[type[PortalError], ...] = (
    InvalidRequest, Unauthorized, Forbidden, ConfirmationRequired, NotFound, MethodNotAllowed, Conflict, PreconditionFailed,
    TooLarge, UnsupportedMedia, QuotaExceeded, RateLimited, PortalError, Unavailable,
    InsufficientStorage,
)  # fmt: skip
