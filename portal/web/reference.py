"""The readable page of the API."""

from flask import Blueprint, current_app
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.web.page import render

pages = Blueprint("reference", __name__)


@pages.get("/api/v1/docs")
@access(Access.PUBLIC)
def index() -> ResponseReturnValue:
    """Every endpoint, by subject."""
    document = current_app.extensions["portal_api"][1]()
    by_tag: dict[str, list[tuple[str, str, dict[str, object]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    return render("api/reference.html", document=document, by_tag=by_tag)
