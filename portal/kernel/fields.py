"""One declaration of a field → column, pydantic annotation, JSON Schema and table cell.

A `Kind` says what values a field takes. The console's form widgets are chosen by kind in `portal.web.forms`; nothing here knows HTTP or HTML.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, StringConstraints
from pydantic import Field as PydanticField
from sqlalchemy import BigInteger, Boolean, Float, ForeignKey, Integer, String, Text
from sqlalchemy.orm import MappedColumn, mapped_column
from sqlalchemy.types import TypeEngine

from portal.kernel.db import JsonColumn, UtcDateTime

MAX_TAGS = 50
MAX_REFS = 20
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


# No control characters, and none that turn the direction of what follows: a name must look like what it is.
_HIDDEN = r"\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
# Joiners belong between other characters: in names of people and in emoji.
_AT_THE_ENDS = rf"{_HIDDEN}\u200c\u200d\s"
NAME = rf"^[^{_AT_THE_ENDS}]([^{_HIDDEN}]*[^{_AT_THE_ENDS}])?$"
HOST_NAME = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"
ONE_LINE = r"^[^\x00-\x1f\x7f]*$"
# Pattern → what people are told of a text that does not match it.
SAYS = {
    NAME: "must begin and end with a visible character and have no control characters",
    HOST_NAME: "must have letters, digits and dashes only, and begin and end with a letter or digit",
    ONE_LINE: "must be one line without control characters",
}


def _no_control(value: str) -> str:
    if CONTROL_CHARACTERS.search(value):
        msg = "contains control characters"
        raise ValueError(msg)
    return value


@dataclass(frozen=True, slots=True)
class Kind:
    """What values a field takes."""

    def column_type(self) -> TypeEngine[Any]:
        """SQLAlchemy type of the column."""
        raise TypeError(type(self))

    def annotation(self) -> Any:
        """Type that pydantic checks and turns into JSON Schema."""
        raise TypeError(type(self))


@dataclass(frozen=True, slots=True)
class Name(Kind):
    """A display name; `hostname` restricts it to what a host may be called."""

    max_length: int = 255
    hostname: bool = False

    def column_type(self) -> TypeEngine[Any]:
        """A bounded string."""
        return String(self.max_length)

    def annotation(self) -> Any:
        """Not empty, no control characters."""
        if self.hostname:
            return Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=HOST_NAME)]
        return Annotated[str, StringConstraints(min_length=1, max_length=self.max_length, pattern=NAME)]


@dataclass(frozen=True, slots=True)
class Line(Kind):
    """One line of text, such as an address; `says` tells people what a text that does not match the pattern should look like."""

    max_length: int = 255
    pattern: str | None = None
    min_length: int = 0
    says: str = ""

    def column_type(self) -> TypeEngine[Any]:
        """A bounded string."""
        return String(self.max_length)

    def annotation(self) -> Any:
        """Bounded, no control characters."""
        if self.pattern and self.says:
            SAYS[self.pattern] = self.says
        constraints = StringConstraints(max_length=self.max_length, min_length=self.min_length, pattern=self.pattern or ONE_LINE)
        return Annotated[str, constraints]


@dataclass(frozen=True, slots=True)
class LongText(Kind):
    """Text of several lines, at most `max_bytes` in UTF-8."""

    max_bytes: int = 16384

    def column_type(self) -> TypeEngine[Any]:
        """Text."""
        return Text()

    def annotation(self) -> Any:
        """Bounded in bytes, since that is what the guest receives."""
        limit = self.max_bytes

        def check(value: str) -> str:
            size = len(value.encode("utf-8", "surrogatepass"))
            if size > limit:
                msg = f"is {size:,} bytes long; at most {limit:,} bytes are accepted"
                raise ValueError(msg)
            return _no_control(value)

        return Annotated[str, StringConstraints(max_length=limit), AfterValidator(check)]


@dataclass(frozen=True, slots=True)
class Int(Kind):
    """A whole number within bounds."""

    low: int
    high: int

    def column_type(self) -> TypeEngine[Any]:
        """Wide enough for the bounds."""
        return BigInteger() if self.high > 2**31 - 1 else Integer()

    def annotation(self) -> Any:
        """Bounded."""
        return Annotated[int, PydanticField(ge=self.low, le=self.high)]


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """A decimal number within bounds."""

    low: float
    high: float

    def column_type(self) -> TypeEngine[Any]:
        """A float: prices are shown, not summed, from here."""
        return Float()

    def annotation(self) -> Any:
        """Bounded and finite."""
        return Annotated[float, PydanticField(ge=self.low, le=self.high, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Bool(Kind):
    """Yes or no."""

    def column_type(self) -> TypeEngine[Any]:
        """A boolean."""
        return Boolean()

    def annotation(self) -> Any:
        """A boolean."""
        return bool


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words."""

    options: tuple[str, ...]

    def column_type(self) -> TypeEngine[Any]:
        """A short string: a new word must not need a migration."""
        return String(32)

    def annotation(self) -> Any:
        """Exactly one of the options."""
        return Literal[self.options]


@dataclass(frozen=True, slots=True)
class State(Kind):
    """The state of a resource; changed by operations only."""

    def column_type(self) -> TypeEngine[Any]:
        """A short string."""
        return String(32)

    def annotation(self) -> Any:
        """A word of the type's lifecycle."""
        return str


@dataclass(frozen=True, slots=True)
class Ref(Kind):
    """The id of another resource, named by its type such as `compute.flavor`.

    `exclusive` where whoever names it is going to change it, `elsewhere` where it may be one of another project, which cannot be chosen from a list.
    """

    type_key: str
    exclusive: bool = False
    elsewhere: bool = False

    def column_type(self) -> TypeEngine[Any]:
        """An id."""
        return String(64)

    def annotation(self) -> Any:
        """An id or, where the type has unique ones, a name."""
        return Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=ONE_LINE)]


@dataclass(frozen=True, slots=True)
class RefList(Kind):
    """The ids of a few other resources of one type."""

    type_key: str

    def column_type(self) -> TypeEngine[Any]:
        """JSON."""
        return JsonColumn

    def annotation(self) -> Any:
        """A short list of ids or names."""
        return Annotated[list[Ref(self.type_key).annotation()], PydanticField(max_length=MAX_REFS)]  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Moment(Kind):
    """A point in time, UTC."""

    def column_type(self) -> TypeEngine[Any]:
        """A moment with its zone."""
        return UtcDateTime()

    def annotation(self) -> Any:
        """ISO 8601 in JSON."""
        return datetime


@dataclass(frozen=True, slots=True)
class Tags(Kind):
    """Key–value pairs: at most 50, keys of 1–100 and values of at most 255 characters."""

    def column_type(self) -> TypeEngine[Any]:
        """JSON."""
        return JsonColumn

    def annotation(self) -> Any:
        """A bounded map of bounded strings."""
        text = ONE_LINE
        key = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=text)]
        value = Annotated[str, StringConstraints(max_length=255, pattern=text)]
        return Annotated[dict[key, value], PydanticField(max_length=MAX_TAGS)]


@dataclass(frozen=True, slots=True)
class TextMap(Kind):
    """Free key–value pairs that the portal only keeps."""

    def column_type(self) -> TypeEngine[Any]:
        """JSON."""
        return JsonColumn

    def annotation(self) -> Any:
        """A bounded map of bounded strings."""
        return Tags().annotation()


@dataclass(frozen=True, slots=True)
class Document(Kind):
    """A JSON object whose shape is checked by whoever takes it."""

    def column_type(self) -> TypeEngine[Any]:
        """JSON."""
        return JsonColumn

    def annotation(self) -> Any:
        """An object."""
        return dict[str, Any]


@dataclass(frozen=True, slots=True)
class Names(Kind):
    """Names or ids of several things, each once."""

    most: int = 20

    def annotation(self) -> Any:
        """A bounded list of bounded lines."""
        name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=ONE_LINE)]
        return Annotated[list[name], PydanticField(max_length=self.most)]


@dataclass(frozen=True, slots=True)
class Entries(Kind):
    """A few objects of one shape; what reads them gets plain dictionaries."""

    shape: type[BaseModel]
    most: int = 20

    def annotation(self) -> Any:
        """A bounded list of objects."""
        plain = AfterValidator(lambda entries: [entry.model_dump() for entry in entries])
        return Annotated[list[self.shape], PydanticField(max_length=self.most), plain]  # type: ignore[name-defined]


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """What is known of a field besides its type; shared by column, forms, API and documents. A new form begins with `example`."""

    kind: Kind
    label: str = ""
    help: str = ""
    unit: str = ""
    editable: bool = False
    exposed: bool = True
    sortable: bool = False
    filterable: bool = False
    aliases: tuple[str, ...] = ()
    show: Callable[[Any], str] | None = None
    example: Any = None
    # What it means to choose nothing, in words; or what tells, given a context.
    none: str | Callable[[Any], str] = "None"


def field(
    kind: Kind,
    *,
    label: str = "",
    help: str = "",  # noqa: A002 - the word users know
    unit: str = "",
    default: Any = None,
    nullable: bool = False,
    index: bool = False,
    editable: bool = False,
    exposed: bool = True,
    sortable: bool = False,
    filterable: bool = False,
    references: str = "",
    column: str = "",
) -> MappedColumn[Any]:
    """Declare a column together with how it is shown, edited, filtered and documented.

    `default` may be a callable; `references` is a table of which this is a foreign key; `column` is the column's name where it differs.
    """
    info = FieldInfo(kind, label, help, unit, editable, exposed, sortable, filterable)
    args: list[Any] = [column] if column else []
    args.append(kind.column_type())
    if references:
        args.append(ForeignKey(references))
    return mapped_column(*args, default=default, nullable=nullable, index=index or bool(references), info={"field": info})
