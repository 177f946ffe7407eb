"""The query string of a list, the same for console and API, checked and turned into a `ListQuery`."""

from collections.abc import Mapping

from werkzeug.datastructures import MultiDict

from portal.kernel.errors import InvalidRequest
from portal.kernel.fields import Choice, State
from portal.kernel.lookup import MAX_OFFSET, MAX_PAGE_SIZE, ListQuery
from portal.kernel.resource import ResourceType

DEFAULT_LIMIT = 20
MAX_SEARCH = 100
MAX_TAG_FILTERS = 10
RESERVED = frozenset({"search", "ordering", "cursor", "limit", "page_size", "page", "offset", "tag", "all_projects"})


def list_query(rtype: ResourceType, args: MultiDict[str, str], *, ignore: frozenset[str] = frozenset()) -> ListQuery:
    """Read a list's query string; `ignore` names parameters that are somebody else's. Raises InvalidRequest naming the parameter."""
    limit, offset = paging(args)
    search = args.get("search", "")
    if len(search) > MAX_SEARCH:
        raise InvalidRequest.fields({"search": [f"must have at most {MAX_SEARCH} characters; this has {len(search)}."]})
    return ListQuery(
        filters=_filters(rtype, args, ignore), tags=_tags(args), search=search.strip(), order=_order(rtype, args), cursor=args.get("cursor", ""),
        limit=limit, offset=offset, all_projects=flag(args, "all_projects"),
    )  # fmt: skip


def paging(args: MultiDict[str, str]) -> tuple[int, int]:
    """(limit, offset) from limit and offset, or from page and page_size. Raises InvalidRequest."""
    size_name = "limit" if "limit" in args else "page_size"
    limit = whole(args, size_name, DEFAULT_LIMIT, low=1, high=MAX_PAGE_SIZE)
    if "page" in args and "offset" not in args:
        page = whole(args, "page", 1, low=1, high=MAX_OFFSET)
        offset = (page - 1) * limit
    else:
        offset = whole(args, "offset", 0, low=0, high=MAX_OFFSET)
    if offset > MAX_OFFSET:
        raise InvalidRequest.fields({"page": [f"lies beyond the first {MAX_OFFSET:,} entries. Follow `next`, or narrow the list."]})
    return limit, offset


def whole(args: Mapping[str, str], name: str, default: int, *, low: int, high: int) -> int:
    """A whole number within bounds. Raises InvalidRequest."""
    text = args.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > len(str(high)) or not low <= int(text) <= high:
        raise InvalidRequest.fields({name: [f"must be a whole number from {low:,} to {high:,}."]})
    return int(text)


def flag(args: Mapping[str, str], name: str) -> bool:
    """Yes or no. Raises InvalidRequest."""
    text = args.get(name, "").lower()
    if text not in {"", "true", "false", "1", "0"}:
        raise InvalidRequest.fields({name: ["must be true or false."]})
    return text in {"true", "1"}


def _filters(rtype: ResourceType, args: MultiDict[str, str], ignore: frozenset[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for given in args:
        if given in RESERVED or given in ignore:
            continue
        name = rtype.aliases.get(given, given)
        info = rtype.fields().get(name)
        values = [value for value in args.getlist(given) if value]
        if info is not None and isinstance(info.kind, State | Choice):
            values = [part for value in values for part in value.split(",") if part]
        if values:
            found.setdefault(name, []).extend(values)
        elif info is None:
            found[name] = []
    return found


def _tags(args: MultiDict[str, str]) -> list[tuple[str, str]]:
    given = [text for text in args.getlist("tag") if text]
    if len(given) > MAX_TAG_FILTERS:
        raise InvalidRequest.fields({"tag": [f"at most {MAX_TAG_FILTERS} tags can be asked for at once."]})
    return [(key, value) for key, _, value in (text.partition(":") for text in given)]


def _order(rtype: ResourceType, args: MultiDict[str, str]) -> str:
    order = args.get("ordering", "")
    minus, name = ("-", order[1:]) if order.startswith("-") else ("", order)
    return minus + rtype.aliases.get(name, name)
