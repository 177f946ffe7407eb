"""The OpenAPI 3.1 document, made from the table of endpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

from portal.api.endpoints import ANYWHERE, Endpoint, Schema
from portal.api.represent import schema_of
from portal.http.probes import VERSION
from portal.kernel.resource import Registry

WORDS = {
    200: "Done", 201: "Created", 202: "Accepted; a job finishes it", 204: "Done, nothing to say",
    206: "The part that Range asks for", 304: "Not modified since the version in If-None-Match",
    400: "Malformed, or a field has a value that is not accepted", 401: "No credential, or one that is wrong or expired",
    403: "Not allowed; the message names the role that is", 404: "Not there, or not yours to see",
    405: "Not for what is there", 409: "Contradicts what is there", 412: "If-Match names another version", 413: "Body too large", 415: "Not JSON",
    416: "Range lies beyond the end", 429: "Quota or request limit exceeded",
    503: "Something that is needed is not there at the moment",
}  # fmt: skip
ERROR: Schema = {
    "type": "object", "required": ["error", "message", "details", "request_id"],
    "properties": {
        "error": {"type": "string", "description": "Code, such as QUOTA_EXCEEDED."},
        "message": {"type": "string", "description": "Cause, limit and way out."},
        "details": {"type": "object", "description": "Field or fact → explanation."},
        "request_id": {"type": "string"},
    },
}  # fmt: skip
DESCRIPTION = (
    "Everything that the console does. Send `Authorization: Token …` (from `/api-token-auth/` or an API key) and choose a project with `X-Project`. "
    "Each path answers with and without a slash at its end, and below `/api/<service>/` and `/api/v1/services/` as well. Work that takes time answers "
    "202 with a `job_id`. `Idempotency-Key` makes a POST safe to repeat; `If-Match` with an `ETag` refuses to overwrite what others changed."
)
HEADER_IF_MATCH = {"name": "If-Match", "in": "header", "schema": {"type": "string"}, "description": "ETag of the version that is to be changed."}
HEADER_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 255},
    "description": "The same key does the same only once.",
}


def document(endpoints: Sequence[Endpoint], registry: Registry) -> dict[str, Any]:
    """The whole document."""
    components: dict[str, Any] = {"Error": dict(ERROR)}
    components.update({rtype.model.__name__: schema_of(rtype) for rtype in registry})
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in sorted(endpoints, key=lambda each: (each.full_path, each.method)):
        paths.setdefault(endpoint.full_path, {})[endpoint.method.lower()] = _operation(endpoint, components)
    tags = [{"name": name} for name in dict.fromkeys(endpoint.tag for endpoint in endpoints)]
    schemes = {
        "token": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Token <token>"},
        "oauth2": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "Access token from /oauth2/token"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Atonix Portal", "version": VERSION, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"oauth2": []}, {"key": []}],
        "tags": tags,
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": schemes},
    }


def _operation(endpoint: Endpoint, components: dict[str, Any]) -> dict[str, Any]:
    parameters = [_path_parameter(name) for name in _names(endpoint.full_path)]
    parameters += [
        {"name": each.name, "in": "query", "required": each.required, "description": each.description, "schema": dict(each.schema)}
        for each in endpoint.query
    ]
    parameters += [HEADER_IF_MATCH] * endpoint.if_match + [HEADER_KEY] * endpoint.idempotent
    found: dict[str, Any] = {
        "operationId": endpoint.name, "summary": endpoint.summary, "tags": [endpoint.tag], "parameters": parameters,
        "responses": {str(status): _response(status, endpoint.answers.get(status)) for status in endpoint.statuses()},
    }  # fmt: skip
    if endpoint.body is not None:
        schema = _hoisted(endpoint.body, components)
        found["requestBody"] = {"required": endpoint.body_required, "content": {endpoint.media: {"schema": schema}}}
    if endpoint.rule == "public":
        found["security"] = []
    return found


def _names(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _response(status: int, schema: Schema | None) -> dict[str, Any]:
    found: dict[str, Any] = {"description": WORDS[status]}
    if status >= min(ANYWHERE):
        found["content"] = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    elif schema is not None:
        media = "application/octet-stream" if schema.get("format") == "binary" else "application/json"
        found["content"] = {media: {"schema": dict(schema)}}
    return found


def _hoisted(schema: Schema, components: dict[str, Any]) -> Mapping[str, Any]:
    """The schema without its own definitions, which move to the document's components."""
    own = dict(schema)
    components.update(own.pop("$defs", {}))
    return own
