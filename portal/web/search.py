"""Search across everything that the user may see, as a dialog and as a page."""

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel.search import search
from portal.web.page import navigation, render

pages = Blueprint("search", __name__)
OTHER_PAGES = (
    ("Overview", "/", "grid"), ("Jobs", "/jobs", "clock"), ("Quotas", "/quotas", "sliders"), ("Audit log", "/audit", "chain"),
    ("Simulator", "/security/simulator", "shield"), ("Projects", "/projects", "folder"), ("Account", "/account", "user"),
    ("API reference", "/api/v1/docs", "term"),
)  # fmt: skip


@pages.get("/search")
@access(Access.SIGNED_IN)
def find() -> ResponseReturnValue:
    """Resources and pages that match."""
    text = request.args.get("q", "").strip()[:100]
    places = [*OTHER_PAGES, *((rtype.plural, f"/{rtype.service}/{rtype.collection}", rtype.icon) for _, _, types in navigation() for rtype in types)]
    matching = [place for place in places if text.lower() in place[0].lower()][:8]
    return render("search/index.html", text=text, hits=search(context(), text, limit=20), places=matching)
