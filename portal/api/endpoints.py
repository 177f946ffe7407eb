"""One table of endpoints, from which the routes, their aliases and the OpenAPI document are made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Flask
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access, large_body

PREFIX = "/api/v1"
View = Callable[..., ResponseReturnValue]
Schema = Mapping[str, Any]

# What any endpoint may answer besides what it is for.
ANYWHERE = (400, 401, 429, 503)
BODY = (413, 415)


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter of the query string."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: {"type": "string"})
    required: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method on one path. `path` is canonical, below /api/v1 but for /api-token-auth; `aliases` are whole paths with the same names in braces.

    `answers` maps each status of success to the schema of its body (None: no body); `refuses` are the statuses that it may refuse with besides
    those that any endpoint has.
    """

    method: str
    path: str
    name: str
    view: View
    summary: str
    tag: str
    answers: Mapping[int, Schema | None]
    refuses: Sequence[int] = ()
    rule: Access | str = Access.SIGNED_IN
    query: Sequence[Query] = ()
    body: Schema | None = None
    body_required: bool = True
    media: str = "application/json"
    if_match: bool = False
    idempotent: bool = False
    is_large: bool = False
    aliases: Sequence[str] = ()

    @property
    def full_path(self) -> str:
        """Where it is, from the root."""
        return self.path if self.path.startswith("/api-token-auth") else PREFIX + self.path

    def statuses(self) -> list[int]:
        """Every status that it may answer with."""
        changing = BODY if self.method in {"POST", "PUT", "PATCH", "DELETE"} else ()
        return sorted({*self.answers, *self.refuses, *ANYWHERE, *changing})


def register(app: Flask, endpoints: Sequence[Endpoint]) -> None:
    """Make the routes; each answers with and without a slash at its end."""
    for endpoint in endpoints:
        view = access(endpoint.rule)(_own(endpoint.view))
        if endpoint.is_large:
            large_body(view)
        app.add_url_rule(_rule(endpoint.full_path), f"api.{endpoint.name}", view, methods=[endpoint.method], strict_slashes=False)
        for alias in endpoint.aliases:
            app.add_url_rule(_rule(alias), f"api.{endpoint.name}", methods=[endpoint.method], strict_slashes=False)


def _own(view: View) -> View:
    """A function of the endpoint's own, so that one view can stand behind several rules."""

    def call(**values: str) -> ResponseReturnValue:
        return view(**values)

    call.__doc__ = view.__doc__
    return call


def _rule(path: str) -> str:
    # Keys of objects have slashes in them.
    return path.replace("{key}", "<path:key>").replace("{", "<").replace("}", ">")
