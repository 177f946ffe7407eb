"""What a resource type is, and the registry from which pages, endpoints, permissions, quota lines and tests are derived.

A model is an ordinary SQLAlchemy class built from the mixins below; a `ResourceType` adds what a column cannot say. The kernel never asks
which type it has in hand: a difference between types is a value or a function of its `ResourceType`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import ColumnElement, Index, String, Text, false, or_, text, true
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import Mapped, declared_attr, mapped_column
from sqlalchemy.orm.interfaces import ORMOption

from portal.kernel import fields as f
from portal.kernel.db import now
from portal.kernel.ids import new_id
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.policy import Columns

if TYPE_CHECKING:
    from portal.kernel.context import Context
    from portal.kernel.declare import AskedWork, Operation
    from portal.kernel.guests import GuestNetworks, GuestVolumes, Machines
    from portal.kernel.leaving import Leaving

Quantity = int | str | Callable[[Any], int]
LIVE = text("deleted_at IS NULL")


class Tenancy(StrEnum):
    """Who a type's rows belong to."""

    PROJECT = "project"
    SHARED = "shared"
    PLATFORM = "platform"


class Resource:
    """Columns that every resource has. Mixin."""

    __tablename__: Any

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    resource_id: Mapped[str] = mapped_column(String(64), unique=True, default=lambda: new_id("res"))
    name: Mapped[str] = f.field(f.Name(), label="Name", editable=True, sortable=True)
    description: Mapped[str] = f.field(f.LongText(2000), label="Description", default="", editable=True)
    owner_id: Mapped[str | None] = f.field(f.Ref("identity.user"), label="Owner", nullable=True, references="users.id")
    tags: Mapped[dict[str, str]] = f.field(f.Tags(), label="Tags", default=dict, editable=True)
    extra: Mapped[dict[str, str]] = f.field(f.TextMap(), label="Metadata", default=dict, editable=True, column="metadata")
    locked: Mapped[bool] = f.field(f.Bool(), label="Locked against changes", default=False)
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime] = f.field(f.Moment(), label="Created", default=now, sortable=True)
    updated_at: Mapped[datetime] = f.field(f.Moment(), label="Changed", default=now, sortable=True)
    deleted_at: Mapped[datetime | None] = f.field(f.Moment(), label="Deleted", nullable=True, exposed=False)

    tenancy: ClassVar[Tenancy]

    @classmethod
    def facts(cls) -> Columns:
        """What policies may look at in a row, as SQL. A model that does not say can be registered by nobody."""
        return Columns()

    def project_of(self) -> str | None:
        """The project that the row belongs to, None for the platform itself."""
        return None

    def is_shared(self) -> bool:
        """Whether every signed-in user may read and use the row."""
        return False

    def shared_projects(self) -> frozenset[str]:
        """The projects whose people may read and use the row."""
        return frozenset()


class ProjectOwned(Resource):
    """A resource inside one project."""

    tenancy = Tenancy.PROJECT
    project_id: Mapped[str] = f.field(f.Ref("identity.project"), label="Project", references="projects.id")

    @classmethod
    def facts(cls) -> Columns:
        """With project and owner."""
        return Columns(cls.project_id, cls.owner_id, None, cls.id, cls.name)

    def project_of(self) -> str | None:
        """The owning project."""
        return self.project_id

    @declared_attr.directive
    def __table_args__(cls) -> tuple[Any, ...]:  # noqa: N805 - SQLAlchemy hands over the class
        """Keyset pages walk this index; live names are unique in their project."""
        table = cls.__tablename__
        return (
            Index(f"ix_{table}_page", "project_id", "deleted_at", "created_at", "id"),
            Index(f"ix_{table}_name", "project_id", "deleted_at", "name", "id"),
            Index(
                f"uq_{table}_live_name", "project_id", "name", unique=True,
                sqlite_where=LIVE, postgresql_where=LIVE,
            ),
        )  # fmt: skip


class Shareable(Resource):
    """A resource of one project, or of the platform where `project_id` is empty, that may be shared with everybody."""

    tenancy = Tenancy.SHARED
    project_id: Mapped[str | None] = f.field(f.Ref("identity.project"), label="Project", references="projects.id", nullable=True)
    is_public: Mapped[bool] = f.field(f.Bool(), label="Public", default=False, filterable=True)

    @classmethod
    def facts(cls) -> Columns:
        """With project and owner, and whether everybody may read it."""
        return Columns(cls.project_id, cls.owner_id, cls.is_public, cls.id, cls.name)

    @classmethod
    def offered_to(cls, project_id: str | None) -> ColumnElement[bool]:
        """The rows of others that a project may use."""
        del project_id
        return cls.is_public.is_(True)

    def project_of(self) -> str | None:
        """The owning project, None for the platform's own."""
        return self.project_id

    def is_shared(self) -> bool:
        """Public rows are."""
        return self.is_public


class ShareableByName(Shareable):
    """A resource that may be shared with everybody, or with projects that are named."""

    # Their ids, each between blanks, so that one can be looked for.
    shared_with: Mapped[str] = mapped_column(Text, default="", server_default="")

    @classmethod
    def facts(cls) -> Columns:
        """With project and owner, and who may read it."""
        return Columns(cls.project_id, cls.owner_id, cls.is_public, cls.id, cls.name, cls.shared_with)

    @classmethod
    def offered_to(cls, project_id: str | None) -> ColumnElement[bool]:
        """The rows of others that a project may use."""
        named = cls.shared_with.contains(f" {project_id} ", autoescape=True) if project_id is not None else false()
        return or_(cls.is_public.is_(True), named)

    def shared_projects(self) -> frozenset[str]:
        """Those that it is shared with."""
        return frozenset((self.shared_with or "").split())


class PlatformOwned(Resource):
    """A resource of the whole platform: everybody signed in reads it, administrators change it."""

    tenancy = Tenancy.PLATFORM

    @classmethod
    def facts(cls) -> Columns:
        """In no project, and everybody may read it."""
        return Columns(None, cls.owner_id, true(), cls.id, cls.name)

    def is_shared(self) -> bool:
        """Always."""
        return True


class Stateful:
    """A resource with a life cycle. Mixin."""

    state: Mapped[str] = f.field(f.State(), label="State", sortable=True, filterable=True, index=True)
    state_reason: Mapped[str] = f.field(f.LongText(2000), label="Reason", default="")
    state_at: Mapped[datetime] = f.field(f.Moment(), label="In this state since", default=now)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a list: a field, or something computed from the row."""

    key: str
    label: str
    sort: str = ""
    hidden: bool = False
    css: str = ""


def _nothing_to_say(_row: Any) -> Sequence[str]:
    return ()


def _no_detail(_row: Any) -> str:
    return ""


def _always(_row: Any) -> bool:
    return True


def _free(_row: Any) -> float | None:
    return None


def _alone(_ctx: "Context", _row: Any) -> None:
    """Nothing goes with it."""


def _nothing_in_the_way(_ctx: "Context", _rtype: "ResourceType", _where: Sequence[ColumnElement[bool]]) -> Sequence[str]:
    return ()


def _nothing_more(_row: Any) -> Sequence[Any]:
    return ()


def _nothing_hidden(_ctx: "Context", _rows: Sequence[Any]) -> Mapping[str, Mapping[str, Any]]:
    return {}


@dataclass(frozen=True, slots=True)
class ResourceType:
    """Everything about a type that its columns do not say.

    `quota` maps a dimension to what one row takes of it: a number, an attribute's name or a function of the row. `show` maps a key that is no column
    (or is to be shown otherwise) to a function of the row; it appears in tables and in the API under that key, with the JSON Schema in `shapes` where
    it is no plain value. Where a row is offered as a choice, `describe` gives short lines about it and `usable` says whether it can be chosen at all;
    `state_detail` is what stands beside its state; `hourly_cost_usd` is its list price, None where it has none. `at_end` ends what goes with a row,
    in the transaction in which it goes; `leaving` says what that is where somebody may delete a row with all that is in it, `in_the_way` why some
    rows cannot be deleted, besides what is in the way of any type's. `goes_with` is the type with whose row the rows of this one go, or are free to
    go: a deletion of everything comes to them after it. `part_of` gives the rows whose lock holds for a row as well. `also_at` are other whole
    paths of the API.
    `veil` says what is shown of rows in place of values that tell of things the caller may not see: row id → field or shown key → value.
    """

    model: type[Any]
    service: str
    name: str
    collection: str
    prefix: str
    label: str
    plural: str
    icon: str
    summary: str
    operations: "Sequence[Operation]"
    columns: Sequence[Column]
    lifecycle: Lifecycle | None = None
    quota: Mapping[str, Quantity] = field(default_factory=dict)
    show: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    shapes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    eager: Callable[[], Sequence[ORMOption]] = tuple
    search: Sequence[str] = ("name", "id")
    aliases: Mapping[str, str] = field(default_factory=dict)
    default_order: str = "-created_at"
    in_navigation: bool = True
    describe: Callable[[Any], Sequence[str]] = _nothing_to_say
    usable: Callable[[Any], bool] = _always
    state_detail: Callable[[Any], str] = _no_detail
    hourly_cost_usd: Callable[[Any], float | None] = _free
    goes_with: str = ""
    part_of: Callable[[Any], Sequence[Any]] = _nothing_more
    also_at: Sequence[str] = ()
    veil: "Callable[[Context, Sequence[Any]], Mapping[str, Mapping[str, Any]]]" = _nothing_hidden
    at_end: "Callable[[Context, Any], None]" = _alone
    leaving: "Callable[[Context, Any], Leaving] | None" = None
    in_the_way: "Callable[[Context, ResourceType, Sequence[ColumnElement[bool]]], Sequence[str]]" = _nothing_in_the_way
    extra_permissions: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Service and name, such as `compute.instance`: how types name each other."""
        return f"{self.service}.{self.name}"

    @property
    def id_name(self) -> str:
        """What the API calls the id: `instance_id`."""
        return f"{self.name}_id"

    @property
    def tenancy(self) -> Tenancy:
        """Who the rows belong to."""
        tenancy: Tenancy = self.model.tenancy
        return tenancy

    @property
    def count_dimension(self) -> str:
        """Quota dimension without a limit that counts the rows, so that a list knows its length without counting."""
        return f"rows:{self.key}"

    def operation(self, verb: str) -> "Operation | None":
        """The operation with this verb, if the type has it."""
        return next((op for op in self.operations if op.verb == verb), None)

    def fields(self) -> Mapping[str, f.FieldInfo]:
        """Attribute name → field, in the order of declaration."""
        return {
            attr.key: attr.columns[0].info["field"] for attr in sa_inspect(self.model).column_attrs if "field" in getattr(attr.columns[0], "info", ())
        }

    def amounts(self, row: Any) -> dict[str, int]:
        """What the row takes of each quota dimension."""
        return {dimension: _quantity(quantity, row) for dimension, quantity in self.quota.items()}

    def states(self) -> Sequence[str]:
        """All states, in alphabetical order."""
        return sorted(self.lifecycle.states) if self.lifecycle else ()


def _quantity(quantity: Quantity, row: Any) -> int:
    if isinstance(quantity, int):
        return quantity
    return int(getattr(row, quantity)) if isinstance(quantity, str) else quantity(row)


class Registry:
    """All resource types of an installation; refuses a type that is not complete."""

    def __init__(
        self,
        types: Sequence[ResourceType],
        permissions: Mapping[str, str],
        asked: Sequence["AskedWork"] = (),
        *,
        networks: "GuestNetworks | None" = None,
        volumes: "GuestVolumes | None" = None,
        machines: "Machines | None" = None,
        fields: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """`permissions` are those that belong to no type: name → access level; `asked` is the work that is no operation of one.

        `fields` are what requests for such permissions hold: permission → name in the request → name for conditions.

        `networks`, `volumes` and `machines` are what services ask of each other.
        """
        self.asked: Mapping[str, AskedWork] = {work.kind: work for work in asked}
        self.fields: Mapping[str, Mapping[str, str]] = fields or {}
        self.networks, self.volumes, self.machines = networks, volumes, machines
        self._types = {rtype.key: rtype for rtype in types}
        if len(self._types) != len(types):
            msg = "two types have the same service and name"
            raise TypeError(msg)
        self._by_model = {rtype.model: rtype for rtype in types}
        self.permissions: dict[str, str] = dict(permissions)
        self._operations: dict[str, Operation] = {}
        for rtype in types:
            self._add(rtype)

    def _add(self, rtype: ResourceType) -> None:
        if "facts" not in {name for base in rtype.model.__mro__ if base is not Resource for name in vars(base)}:
            msg = f"{rtype.key} does not say what policies may look at in its rows"
            raise TypeError(msg)
        if unsorted := [name for name, info in rtype.fields().items() if info.sortable and getattr(rtype.model, name).nullable]:
            # A page begins after a value; nothing comes after "no value".
            msg = f"{rtype.key} cannot be sorted by {', '.join(unsorted)}, which may be empty"
            raise TypeError(msg)
        self.permissions[f"{rtype.key}.read"] = "read"
        self.permissions.update({f"{rtype.key}.{verb}": level for verb, level in rtype.extra_permissions.items()})
        for op in rtype.operations:
            if op.model is not rtype.model or op.verb == "read":
                msg = f"operation {op.verb} does not belong to {rtype.key}"
                raise TypeError(msg)
            name = f"{rtype.key}.{op.verb}"
            if name in self._operations:
                msg = f"operation {name} is declared twice"
                raise TypeError(msg)
            op.check(rtype)
            self.permissions[name] = op.needs
            self._operations[name] = op
        if rtype.tenancy is not Tenancy.PLATFORM and not any(op.effect == "remove" and not op.internal for op in rtype.operations):
            msg = f"{rtype.key} has no operation that removes a row: projects with one could not be deleted"
            raise TypeError(msg)

    def __iter__(self) -> Iterator[ResourceType]:
        return iter(self._types.values())

    def get(self, key: str) -> ResourceType | None:
        """The type with this key, such as `compute.instance`."""
        return self._types.get(key)

    def model(self, key: str) -> Any:
        """The model of a type, for a query by a service that must not import it. Raises KeyError."""
        return self._types[key].model

    def of(self, model: type[Any]) -> ResourceType:
        """The type of a model."""
        return self._by_model[model]

    def by_collection(self, service: str, collection: str) -> ResourceType | None:
        """The type at `/<service>/<collection>`."""
        return next((t for t in self if t.service == service and t.collection == collection), None)

    def operation(self, name: str) -> "Operation":
        """The operation with this full name, such as `compute.instance.start`."""
        return self._operations[name]

    def operations(self) -> Mapping[str, "Operation"]:
        """All operations by full name."""
        return self._operations

    def urgent(self) -> Sequence[str]:
        """Kinds of jobs that go before all others."""
        return [name for name, op in self._operations.items() if op.urgent]

    def level(self, action: str) -> str:
        """Access level of a permission. Raises KeyError for one that was never declared: deny by default."""
        return self.permissions[action]

    def name_of(self, op: "Operation") -> str:
        """Full name of an operation."""
        return f"{self.of(op.model).key}.{op.verb}"
