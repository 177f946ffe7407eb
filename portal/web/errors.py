"""Refusals as people see them: a page, a part of the page, or the way to the sign-in form."""

from urllib.parse import urlencode, urlsplit

from flask import make_response, redirect, request, session
from flask.typing import ResponseReturnValue

from portal.http.request import session_secret
from portal.kernel.errors import ConfirmationRequired, PortalError, Unauthorized
from portal.web.entry import confirmation, form
from portal.web.page import is_fragment, render

TITLES = {
    400: "This request cannot be understood", 403: "You may not do this", 404: "There is nothing here", 405: "This cannot be done here",
    409: "This contradicts what is there", 412: "Somebody else was faster", 413: "Too large", 415: "Unknown kind of content", 429: "Not so fast",
    500: "Something went wrong", 503: "Not available at the moment",
}  # fmt: skip
SECRET_NAMES = ("password", "secret", "token", "old", "new", "again")
MAX_CARRIED = 200


def render_error(error: PortalError) -> ResponseReturnValue:
    """Answer a refusal."""
    if isinstance(error, Unauthorized):
        return _sign_in_first(error)
    if isinstance(error, ConfirmationRequired):
        return _confirm_first(error)
    title = TITLES.get(error.status, TITLES[500] if error.status >= 500 else TITLES[400])  # noqa: PLR2004 - ours or theirs
    if is_fragment():
        response = render("errors/toast.html", error.status, error=error, title=title)
        response.headers["HX-Retarget"], response.headers["HX-Reswap"] = "#toasts", "beforeend"
        return response
    response = render("errors/page.html", error.status, error=error, title=title)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def _sign_in_first(error: PortalError) -> ResponseReturnValue:
    if is_fragment():
        response = make_response(error.message, 401)
        response.headers["X-Session-Expired"] = "1"
        return response
    here = _here()
    if request.method in {"GET", "HEAD"}:
        return redirect("/login" + ("?" + urlencode({"next": here}) if here != "/" else ""), 303)
    # Nobody loses what they typed with their session, whose cookie the browser may have dropped; the form of a stranger is not even parsed.
    carried = _carried() if session_secret() or "csrf_token" in session else []
    return form(here, 401, message=error.message, carried=carried)


def _confirm_first(error: ConfirmationRequired) -> ResponseReturnValue:
    """Ask again who one is; what was typed is handed back afterwards."""
    if is_fragment():
        response = make_response(error.message, 403)
        page = urlsplit(request.headers.get("HX-Current-URL", ""))
        response.headers["HX-Redirect"] = "/confirm?" + urlencode({"next": f"{page.path}?{page.query}" if page.query else page.path or "/"})
        return response
    if request.method in {"GET", "HEAD"}:
        return redirect("/confirm?" + urlencode({"next": _here()}), 303)
    return confirmation(request.path, 403, message=error.message, carried=_carried())


def _here() -> str:
    return request.full_path.rstrip("?") if request.query_string else request.path


def _carried() -> list[tuple[str, str]]:
    """What was typed, to be handed back after signing in; never anything secret."""
    pairs = [(name, value) for name in request.form for value in request.form.getlist(name)]
    kept = [(name, value) for name, value in pairs if name != "csrf_token" and not any(word in name.lower() for word in SECRET_NAMES)]
    return kept[:MAX_CARRIED]
