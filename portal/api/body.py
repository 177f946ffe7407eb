"""Reading requests and writing answers: strict JSON in, plain JSON out, entity tags."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from flask import Response, current_app, request

from portal.kernel.errors import InvalidRequest, PreconditionFailed, UnsupportedMedia

JSON_TYPES = ("application/json", "application/merge-patch+json")


def read_object() -> dict[str, Any]:
    """The request's JSON object; an empty body is an empty object. Raises InvalidRequest or UnsupportedMedia."""
    raw = request.get_data(cache=False)
    if not raw:
        return {}
    if request.mimetype not in JSON_TYPES:
        raise UnsupportedMedia(f"Send JSON with Content-Type: application/json, not {request.mimetype[:80] or 'without a type'}.")
    data = parse(raw)
    if not isinstance(data, dict):
        raise InvalidRequest('The body must be a JSON object such as {"name": "web-1"}.')
    return data


def parse(raw: bytes) -> Any:
    """JSON as its standard has it: no NaN, no key twice, no lone surrogates, no bottomless nesting."""
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise InvalidRequest("The body is no JSON: its text is not valid UTF-8.") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except ValueError as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InvalidRequest(f"The body is no JSON: {what}{where}.") from None
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"the key {twice[:80]} is there twice"
        raise ValueError(msg)
    return found


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON number"
    raise ValueError(msg)


def answer(body: Mapping[str, Any], status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    response = Response(current_app.json.dumps(body), status, mimetype="application/json")
    response.headers.update(headers or {})
    return response


def empty() -> Response:
    """204."""
    return Response(status=204)


def moment(value: datetime | None) -> str | None:
    """ISO 8601 in UTC, with a Z."""
    return None if value is None else value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def etag(row: Any) -> str:
    """Entity tag of a row's version."""
    return f'"{row.version}"'


def expected_version() -> int | None:
    """The version that If-Match names; None where any will do. Raises PreconditionFailed for one that can never match."""
    header = request.headers.get("If-Match", "").strip()
    if header in {"", "*"}:
        return None
    text = header.strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 12:  # noqa: PLR2004 - versions are small numbers
        raise PreconditionFailed("If-Match is no entity tag that this resource gave.", details={"expected": header[:80]})
    return int(text)


def not_modified(tag: str) -> bool:
    """Whether the caller has this entity already."""
    return request.headers.get("If-None-Match", "").strip() in {tag, "*", f"W/{tag}"}


def page_of(
    results: Sequence[Mapping[str, Any]], *, count: int, following: str | None = None, previous: str | None = None, **more: Any
) -> dict[str, Any]:
    """The envelope of a list."""
    return {"count": count, "next": following, "previous": previous, "results": list(results), **more}
