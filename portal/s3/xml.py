"""XML of S3: what clients send, read without any of XML's dangers, and what they get.

Stable: `parse(body, root)` gives a `Node` (`.child(name)`, `.children_named(name)`, `.value(name)`); `leaf`, `group`, `document` and `error_document` write.
What is refused is MalformedXML: document types, entities, bodies over MAX_BODY, too many or too deep elements. Namespaces are read over: clients differ in them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from xml.parsers import expat  # nosec B407

from portal.s3.errors import ERRORS, S3Error

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
MAX_BODY = 2 * 1024 * 1024
MAX_DEPTH = 16
# A multipart upload of 10,000 parts is completed with some 40,000.
MAX_ELEMENTS = 100_000
# What XML gives a meaning, what it would read back as something else, and what it does not know at all.
SPECIAL = re.compile('[&<>"\x00-\x1f\x7f-\x9f\u2028\ufffe\uffff]')
UNKNOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def _malformed(why: str) -> S3Error:
    return S3Error("MalformedXML", f"{ERRORS['MalformedXML'][1]} {why}")


@dataclass(slots=True)
class Node:
    """An element: its name without namespace, its text, what is in it."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: "list[Node]" = field(default_factory=list)
    text: str = ""

    def child(self, name: str) -> "Node | None":
        """The only child of this name. Raises MalformedXML where there are several."""
        found = list(self.children_named(name))
        if len(found) > 1:
            raise _malformed(f"{name} stands {len(found)} times in {self.name}.")
        return found[0] if found else None

    def children_named(self, name: str) -> "Iterator[Node]":
        """The children of this name, in order."""
        return (child for child in self.children if child.name == name)

    def value(self, name: str) -> str | None:
        """The text of the only child of this name."""
        found = self.child(name)
        return None if found is None else found.text


class _Reader:
    """Builds the tree from what expat reports."""

    def __init__(self) -> None:
        self.root = Node("")
        self.open = [self.root]
        self.elements = 0
        self.text: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.elements += 1
        if len(self.open) > MAX_DEPTH or self.elements > MAX_ELEMENTS:
            raise _malformed("There are too many elements, or they are nested too deep.")
        node = Node(_local(name), {_local(key): value for key, value in attributes.items()})
        self.open[-1].children.append(node)
        self.open.append(node)
        # What stands between elements is layout.
        self.text.clear()

    def end(self, _name: str) -> None:
        node = self.open.pop()
        if not node.children:
            node.text = "".join(self.text)
        self.text.clear()


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


def _refuse(*_: object) -> None:
    raise _malformed("Document types and entities are not accepted.")


def parse(body: bytes, root: str) -> Node:
    """The element `root` that the body consists of. Raises MalformedXML."""
    if len(body) > MAX_BODY:
        raise _malformed(f"The body is larger than {MAX_BODY} bytes.")
    reader = _Reader()
    parser = expat.ParserCreate("utf-8", namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = reader.start, reader.end, reader.text.append
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.ExternalEntityRefHandler = _refuse  # type: ignore[assignment]
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise _malformed(f"Line {error.lineno}: {expat.ErrorString(error.code)}.") from None
    found = reader.root.children[0]
    if found.name != root:
        raise _malformed(f"The element is {found.name}, not {root}.")
    return found


def escaped(text: str) -> str:
    """Text as it may stand in an element.

    Characters that XML does not know are replaced (U+FFFD): one strange key must not make a listing unreadable. `encoding-type=url` shows them.
    """
    if not SPECIAL.search(text):
        return text
    return SPECIAL.sub(lambda found: NAMED.get(found[0]) or f"&#x{ord(found[0]):X};", UNKNOWN.sub("\ufffd", text))


def leaf(name: str, value: str | int | bool) -> str:
    """An element with text."""
    if isinstance(value, bool):
        return f"<{name}>{'true' if value else 'false'}</{name}>"
    return f"<{name}>{value if isinstance(value, int) else escaped(value)}</{name}>"


def group(name: str, *parts: str) -> str:
    """An element around elements that are written already."""
    return f"<{name}>{''.join(parts)}</{name}>"


def document(name: str, *parts: str, namespace: str = NAMESPACE) -> bytes:
    """A whole answer."""
    opening = f'{name} xmlns="{namespace}"' if namespace else name
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{opening}>{"".join(parts)}</{name}>'.encode()


def error_document(error: S3Error, resource: str, request_id: str) -> bytes:
    """The body of a refusal; an answer to HEAD and a 304 go without."""
    details = [leaf(name, value) for name, value in error.details.items()]
    about = [leaf("Resource", resource), leaf("RequestId", request_id)]
    return document("Error", leaf("Code", error.code), leaf("Message", error.message), *details, *about, namespace="")


def timestamp(moment: datetime) -> str:
    """A moment as S3 writes it in XML: 2026-02-03T16:45:09.000Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
