"""Forms from operations: the kind of a parameter chooses the field. Binding and rendering only; what is accepted is decided where all input is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

from flask import request
from werkzeug.datastructures import MultiDict
from wtforms import BooleanField, Field, Form, StringField, TextAreaField

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import Operation, Param
from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import ListQuery, found_rows
from portal.kernel.resource import ResourceType

MAX_CHOICES = 100
MAX_DAYS = 3650
AS_CARDS = 16
# The field that stands for several inputs of which one is given.
ONE = "one_of"


@dataclass(frozen=True, slots=True)
class Option:
    """One row that can be chosen, with short lines about it."""

    value: str
    label: str
    lines: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Widget:
    """What a template needs to know of a field besides what WTForms knows."""

    param: Param
    style: str
    options: Sequence[Option] = ()
    # Options under headings, where it stands for several inputs.
    groups: Sequence[tuple[str, Sequence[Option]]] = ()
    # Waits behind "More options" unless something is typed in it.
    is_quiet: bool = False

    @property
    def is_required(self) -> bool:
        """Whether the form cannot go without it."""
        return self.param.required

    @property
    def is_optional(self) -> bool:
        """Whether it may be left empty and does not say what that means."""
        says_itself = isinstance(self.param.info.kind, f.Name) or self.param.info.none != "None" or self.param.default not in (None, "")
        return not self.param.required and not says_itself

    @property
    def empty(self) -> str:
        """What it means to leave it empty, where that is a word."""
        return self.param.info.none if isinstance(self.param.info.none, str) and self.param.info.none != "None" else ""

    @property
    def unit(self) -> str:
        """Unit of the number."""
        return self.param.info.unit

    @property
    def help(self) -> str:
        """One sentence under the field."""
        return self.param.info.help


@dataclass(frozen=True, slots=True)
class Label:
    """What a field is called."""

    text: str


@dataclass(frozen=True, slots=True)
class Single:
    """A field that stands for several inputs of which one is given: its value is `input:row`."""

    name: str
    label: Label
    data: str


class OperationForm:
    """The form of one operation, bound to what was typed or to the row that it changes."""

    def __init__(self, ctx: Context, op: Operation, *, typed: Any = None, row: Any = None) -> None:
        # What is named for a row is of its project, whichever one the user is in.
        ctx = replace(ctx, project_id=row.project_of() or ctx.project_id) if row is not None else ctx
        self.ctx, self.op, self.row = ctx, op, row
        made = {name: field_for(param.info.kind, param, ctx) for name, param in op.params.items() if name not in op.besides}
        self.widgets = {name: widget for name, (_, widget) in made.items()}
        for name, filters in (op.among(row) if op.among is not None and row is not None else {}).items():
            rtype = ctx.registry.get(op.params[name].info.kind.type_key)  # type: ignore[attr-defined] # a reference
            if rtype is not None:
                options = _options(ctx, rtype, filters)
                style = "select" if len(options) <= MAX_CHOICES else "name"
                made[name] = (made[name][0], replace(self.widgets[name], options=options[:MAX_CHOICES], style=style))
        self.widgets = {name: widget for name, (_, widget) in made.items()}
        typed = _apart(op, typed)
        form_class = type("Bound", (Form,), {name: field for name, (field, _) in made.items()})
        self.form: Form = form_class(formdata=typed, data=_present(op, row))
        self.errors: dict[str, list[str]] = {}
        self.message = ""
        # Where more of a quota can be asked for that the input would exceed.
        self.request_url = ""

    def fields(self, *, quiet: bool) -> list[tuple[Field, Widget]]:
        """Fields of the one or the other part of the form."""
        one = self.op.one_of
        # Where there are too many to choose from, each is named in a field of its own.
        single = self._single() if one is not None and all(self.widgets[name].style != "name" for name in one.params) else {}
        pairs = [single.get(name) or (self.form[name], widget) for name, widget in self.widgets.items() if name not in single or single[name]]
        return [(field, widget) for field, widget in pairs if widget.is_quiet == quiet]

    def _single(self) -> dict[str, tuple[Any, Widget] | None]:
        """In place of the first of several inputs, one field that stands for all of them; None in place of the others."""
        one = self.op.one_of
        assert one is not None  # noqa: S101  # nosec B101 - asked by the caller
        first, *others = one.params
        chosen = next((f"{name}:{self.form[name].data}" for name in one.params if self.form[name].data), "")
        groups = [(words, [replace(each, value=f"{name}:{each.value}") for each in self.widgets[name].options if each.value])
                  for name, words in one.params.items()]  # fmt: skip
        if chosen and all(each.value != chosen for _, options in groups for each in options):
            groups.append(("Chosen", [Option(chosen, chosen.partition(":")[2])]))
        info = f.FieldInfo(f.Line(300), one.label, one.help, none=one.none)
        widget = Widget(Param(ONE, info, required=False, default=None, nullable=True), "grouped", [Option("", one.none)], groups)
        for name in one.params:
            self.errors.setdefault(ONE, []).extend(each for each in self.errors.pop(name, []) if each not in self.errors.get(ONE, []))
        if not self.errors[ONE]:
            del self.errors[ONE]
        return {first: (Single(ONE, Label(one.label), chosen), widget), **dict.fromkeys(others)}

    def typed(self) -> dict[str, list[str]]:
        """What a browser would send if nobody touched the form."""
        found = {}
        for field in self.form:
            values = field.data if isinstance(field.data, list | tuple) else [field.data]
            found[field.name] = ["y" if value is True else str(value) for value in values if value not in {None, False, ""}]
        return {name: values for name, values in found.items() if values}

    @property
    def has_quiet_content(self) -> bool:
        """Whether the hidden part has to be open: something in it is filled in or wrong."""
        return any(field.name in self.errors or (field.data and field.data != widget.param.default) for field, widget in self.fields(quiet=True))

    def data(self) -> dict[str, Any]:
        """Input for `run`, as text where it was typed. Raises InvalidRequest for tags that cannot be read."""
        found, problems = {}, {}
        for name, widget in self.widgets.items():
            try:
                value = _value(widget.param, self.form[name].data, is_new=self.row is None)
            except ValueError as error:
                problems[name] = [str(error)]
                continue
            if value is not None or (widget.param.nullable and not widget.param.required and self.row is not None):
                found[name] = value
        if problems:
            raise InvalidRequest.fields(problems)
        return self._changed(found) if self.op.partial and self.row is not None else found

    def _changed(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Only what differs from the row: the audit log tells what somebody changed, not what they left alone."""
        return {name: value for name, value in found.items() if value != getattr(self.row, name)}


def _apart(op: Operation, typed: Any) -> Any:
    """What was typed, with the inputs in place of the one field that stands for them."""
    if typed is None or op.one_of is None or ONE not in typed:
        return typed
    name, _, value = str(typed[ONE]).partition(":")
    others = [(key, each) for key in typed for each in typed.getlist(key) if key != ONE and key not in op.one_of.params]
    return MultiDict([*others, *([(name, value)] if name in op.one_of.params else [])])


def as_json(document: Any) -> str:
    """A document as text, for people."""
    return json.dumps(document, indent=2, ensure_ascii=False)


def from_json(text: str) -> Any:
    """A document from text. Raises ValueError saying where it is no JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        msg = f"is no JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        raise ValueError(msg) from None
    except RecursionError:
        msg = "is nested too deeply."
        raise ValueError(msg) from None


def _present(op: Operation, row: Any) -> dict[str, Any]:
    shown = {}
    present = op.present(row) if row is not None and op.present is not None else {}
    for name, param in op.params.items():
        value = getattr(row, name) if row is not None and op.partial else param.info.example if param.required else param.default
        value = present.get(name, value)
        if isinstance(param.info.kind, f.Tags | f.TextMap):
            value = as_lines(value or {})
        elif isinstance(param.info.kind, f.Names):
            value = "\n".join(value or ())
        elif isinstance(param.info.kind, f.Document):
            value = as_json(value) if value is not None else ""
        shown[name] = value
    return shown


def as_lines(pairs: Mapping[str, str]) -> str:
    """Tags as text: one `key=value` per line."""
    return "\n".join(f"{key}={value}" for key, value in pairs.items())


def from_lines(text: str) -> dict[str, str]:
    """Tags from text. Raises ValueError naming the line that is none."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        key, equals, value = line.partition("=")
        if not equals or not key.strip():
            msg = f"Line {number} must be key=value."
            raise ValueError(msg)
        if key.strip() in found:
            msg = f"Line {number} gives {key.strip()[:100]} a second value."
            raise ValueError(msg)
        found[key.strip()] = value.strip()
    return found


def entries_from_lines(kind: f.Entries, text: str) -> list[dict[str, str]]:
    """Objects from text, one per line, their values in order. Raises ValueError naming the line that has too many."""
    found = []
    names = list(kind.shape.model_fields)
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if len(words) > len(names):
            msg = f"Line {number} has more than {len(names)} words."
            raise ValueError(msg)
        if words:
            found.append(dict(zip(names, words, strict=False)))
    return found


def _value(param: Param, typed: Any, *, is_new: bool) -> Any:
    if isinstance(param.info.kind, f.Bool):
        # Of something new, nobody can say no in a box that stands for not having said anything.
        return bool(typed) or (None if param.nullable and is_new else False)
    text = "" if typed is None else str(typed)
    if isinstance(param.info.kind, f.Tags | f.TextMap | f.Names):
        return [line.strip() for line in text.splitlines() if line.strip()] if isinstance(param.info.kind, f.Names) else from_lines(text)
    if isinstance(param.info.kind, f.Entries):
        return entries_from_lines(param.info.kind, text)
    if isinstance(param.info.kind, f.Document):
        return from_json(text) if text.strip() else None
    if isinstance(param.info.kind, f.LongText):
        # Browsers send CRLF; a script with it would not run.
        return text.replace("\r\n", "\n")
    return _one_line(param, text.strip())


def _one_line(param: Param, text: str) -> Any:
    if isinstance(param.info.kind, f.RefList):
        return scopes_of(text) or ([] if param.required else None)
    if text == "" and (param.required or param.nullable or not isinstance(param.info.kind, f.Name | f.Line | f.Choice)):
        return "" if param.required else None
    return text


def none_of(param: Param, ctx: Context) -> str:
    """What it means to choose nothing."""
    said = param.info.none
    return said if isinstance(said, str) else said(ctx)


def _label(param: Param) -> str:
    return param.info.label or param.name.replace("_", " ").capitalize()


@singledispatch
def field_for(kind: f.Kind, param: Param, ctx: Context) -> tuple[Any, Widget]:
    """(WTForms field, how it is shown) of a parameter of this kind."""
    del kind, ctx
    return StringField(_label(param)), Widget(param, "line")


@field_for.register
def _(kind: f.LongText, param: Param, ctx: Context) -> tuple[Any, Widget]:
    del ctx
    is_short = kind.max_bytes <= 2000  # noqa: PLR2004 - a description, not a document
    return TextAreaField(_label(param)), Widget(param, "text" if is_short else "document", is_quiet=not param.required)


@field_for.register
def _(kind: f.Names, param: Param, ctx: Context) -> tuple[Any, Widget]:
    del kind, ctx
    return TextAreaField(_label(param)), Widget(param, "lines")


@field_for.register
def _(kind: f.Entries, param: Param, ctx: Context) -> tuple[Any, Widget]:
    del kind, ctx
    return TextAreaField(_label(param)), Widget(param, "lines")


@field_for.register
def _(kind: f.Document, param: Param, ctx: Context) -> tuple[Any, Widget]:
    del kind, ctx
    return TextAreaField(_label(param)), Widget(param, "json", is_quiet=not param.required)


@field_for.register
def _(kind: f.Int, param: Param, ctx: Context) -> tuple[Any, Widget]:
    del kind, ctx
    return StringField(_label(param)), Widget(param, "number")


@field_for.register
def _(kind: f.Number, param: Param, ctx: Context) -> tuple[Any, Widget]:
    del kind, ctx
    return StringField(_label(param)), Widget(param, "number")


@field_for.register
def _(kind: f.Bool, param: Param, ctx: Context) -> tuple[Any, Widget]:
    del kind, ctx
    return BooleanField(_label(param)), Widget(param, "check", is_quiet=True)


@field_for.register
def _(kind: f.Choice, param: Param, ctx: Context) -> tuple[Any, Widget]:
    options = [Option(option, option or none_of(param, ctx)) for option in kind.options]
    return StringField(_label(param)), Widget(param, "choice", options)


@field_for.register
def _(kind: f.Ref, param: Param, ctx: Context) -> tuple[Any, Widget]:
    rtype = ctx.registry.get(kind.type_key)
    if rtype is None:
        return StringField(_label(param)), Widget(param, "line")
    options = _options(ctx, rtype)
    if kind.elsewhere or len(options) > MAX_CHOICES:
        return StringField(_label(param)), Widget(param, "name", options[:MAX_CHOICES])
    style = "cards" if param.required and len(options) <= AS_CARDS else "select"
    if not param.required:
        options = [Option("", none_of(param, ctx)), *options]
    return StringField(_label(param)), Widget(param, style, options)


@field_for.register
def _(kind: f.RefList, param: Param, ctx: Context) -> tuple[Any, Widget]:
    rtype = ctx.registry.get(kind.type_key)
    return StringField(_label(param)), Widget(param, "name", _options(ctx, rtype)[:MAX_CHOICES] if rtype is not None else [])


def _options(ctx: Context, rtype: ResourceType, filters: Mapping[str, Sequence[str]] | None = None) -> list[Option]:
    rows = found_rows(ctx, rtype, ListQuery(filters=filters or {}), limit=MAX_CHOICES + 1, order=rtype.default_order)
    return [Option(row.id, row.name, [line for line in rtype.describe(row) if line]) for row in rows if rtype.usable(row)]


def _pairs(param: Param) -> tuple[Any, Widget]:
    return TextAreaField(_label(param)), Widget(param, "pairs", is_quiet=True)


@field_for.register
def _(kind: f.Tags, param: Param, ctx: Context) -> tuple[Any, Widget]:
    del kind, ctx
    return _pairs(param)


@field_for.register
def _(kind: f.TextMap, param: Param, ctx: Context) -> tuple[Any, Widget]:
    del kind, ctx
    return _pairs(param)


def check_named(name: str) -> None:
    """Raise InvalidRequest unless the form of a dangerous action says the name of what it is about."""
    if request.form.get("confirm", "").strip() != name:
        raise InvalidRequest.fields({"confirm": [f"must be {name}: nothing was done."]})


def scopes_of(text: str) -> list[str]:
    """Scopes as people type them: separated by blanks or commas."""
    return text.replace(",", " ").split()


def days_of(text: str) -> int | None:
    """A lifetime in days; None where nothing was typed. Raises InvalidRequest."""
    if text and not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= MAX_DAYS):
        raise InvalidRequest.fields({"days": [f"must be a whole number from 1 to {MAX_DAYS:,}."]})
    return int(text) if text else None
