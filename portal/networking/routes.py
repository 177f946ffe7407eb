"""Route tables: where packets go that leave a VPC's own range, which is always routed within it."""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import joinedload, selectinload

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import Conflict, InvalidRequest, NotFound
from portal.kernel.lookup import seen, unseen
from portal.kernel.operations import also_changes
from portal.kernel.resource import Column, ResourceType
from portal.networking.addresses import ANYWHERE, parse_destination
from portal.networking.changes import NAMED, UNSEEN, named_rows, vpc_touch, wrong
from portal.networking.models import TARGETS, InternetGateway, NatGateway, NetworkInterface, Route, RouteTable, Subnet, Vpc, VpcPeering
from portal.networking.subnets import VPC_FIELD
from portal.networking.vpc import applied

MAX_ROUTES = 100
SHOWN = ("route_id", "destination_cidr", "target_type", "target_id")
MODELS: dict[str, Any] = dict(zip(TARGETS, (InternetGateway, NatGateway, VpcPeering, NetworkInterface), strict=True))
Destination = Annotated[str, f.FieldInfo(f.Line(64), "Destination", "A range such as 0.0.0.0/0; the longest prefix wins.")]
TargetType = Annotated[str, f.FieldInfo(f.Choice(TARGETS), "Leads to")]
TargetId = Annotated[str, f.FieldInfo(f.Line(64), "Id of that", "May be left empty for the VPC's internet gateway.")]
RouteId = Annotated[str, f.FieldInfo(f.Line(64), "Route", aliases=("route_id",))]
SUBNET_FIELD = f.FieldInfo(f.Ref("networking.subnet", exclusive=True), "Subnet", aliases=("subnet_id",))


Text = Annotated[str, StringConstraints(max_length=64, pattern=f.ONE_LINE)]


class NewRoute(BaseModel):
    """A route that a table begins with."""

    model_config = ConfigDict(extra="forbid")

    destination_cidr: Text = Field(description="A range such as 0.0.0.0/0; the longest prefix wins.")
    target_type: f.Choice(TARGETS).annotation()  # type: ignore[valid-type]
    target_id: Text = Field("", description="May be left empty for the VPC's internet gateway.")


Routes = Annotated[
    list[dict[str, str]] | None,
    f.FieldInfo(
        f.Entries(NewRoute, MAX_ROUTES),
        "Routes",
        f"One per line: range, what it leads to ({', '.join(TARGETS)}) and its id, such as 0.0.0.0/0 internet-gateway.",
    ),
]


@operation(
    RouteTable, "create", label="Create", needs="write", effect=Effect.CREATE, icon="plus",
    along=lambda ctx, row, inputs: _begin(ctx, row, inputs.get("routes") or ()),
)  # fmt: skip
def route_table_create(
    ctx: Context, *, name: str, vpc: Annotated[Vpc, VPC_FIELD], routes: Routes = None, description: str = "", tags: dict[str, str] | None = None
) -> RouteTable:
    """Create a route table, with routes if some are given; subnets use the main one until they are given another."""
    del ctx, routes
    return RouteTable(name=name, vpc=vpc, vpc_id=vpc.id, description=description, tags=tags or {}, routes=[])


def _begin(ctx: Context, table: RouteTable, routes: Sequence[Mapping[str, str]]) -> None:
    """Give a new table its routes, all or none."""
    vpc_touch(ctx, table.vpc_id)
    for number, each in enumerate(routes):
        try:
            _add(ctx, table, each["destination_cidr"], each["target_type"], each["target_id"])
        except (InvalidRequest, Conflict) as error:
            # Told as of the list: which of them, and which of its fields.
            field, text = next(((name, said[0]) for name, said in error.details.items() if isinstance(said, list)), ("", error.message))
            where = f"{number}.{field}" if field else str(number)
            raise type(error)(f"routes: {where}: {text}", details={"routes": [f"{where}: {text}"]}) from None


@operation(RouteTable, "add_route", label="Add a route", needs="write", icon="plus", in_menu=False)
def route_table_add_route(
    ctx: Context, table: RouteTable, *, destination_cidr: Destination, target_type: TargetType, target_id: TargetId = ""
) -> str:
    """Lead a range to a gateway, a peering or an interface."""
    vpc_touch(ctx, table.vpc_id)
    return _add(ctx, table, destination_cidr, target_type, target_id)


def _add(ctx: Context, table: RouteTable, destination_cidr: str, target_type: str, target_id: str) -> str:
    try:
        destination = parse_destination(destination_cidr)
    except ValueError as error:
        raise wrong("destination_cidr", f"{error}.") from None
    inside = IPv4Network(table.vpc.cidr_block)
    if destination.subnet_of(inside):
        raise wrong("destination_cidr", f"lies in the VPC's own range {inside}, which is always routed within it.")
    twin = next((route for route in table.routes if route.destination_cidr == str(destination)), None)
    if twin is not None:
        raise Conflict(
            f"{table.name} has a route for {destination} already: it leads to {twin.target_id}. Remove it first.", details={"route_id": twin.id}
        )
    if len(table.routes) >= MAX_ROUTES:
        raise Conflict(f"{table.name} has {MAX_ROUTES} routes, the most that a table may have.", details={"limit": MAX_ROUTES})
    route = Route(destination_cidr=str(destination), target_type=target_type, target_id=_target(ctx, table, target_type, target_id))
    table.routes.append(route)
    ctx.db.flush()
    return route.id


def _target(ctx: Context, table: RouteTable, target_type: str, target_id: str) -> str:
    """The id of a live target in the table's VPC. Raises InvalidRequest for a route to nowhere."""
    model = MODELS[target_type]
    label = ctx.registry.of(model).label
    if not target_id and model is not InternetGateway:
        raise wrong("target_id", f"is required: which {label} does the route lead to?")
    joins = (VpcPeering.vpc_id == table.vpc_id) | (VpcPeering.peer_vpc_id == table.vpc_id) if model is VpcPeering else model.vpc_id == table.vpc_id
    query = select(model.id).where(joins, model.deleted_at.is_(None), model.project_id == table.project_id, seen(ctx, model))
    found = ctx.db.scalar(query.where((model.id == target_id) | (model.name == target_id)).order_by(model.id != target_id) if target_id else query)
    if found is not None and model is VpcPeering and (peering := ctx.db.get_one(VpcPeering, found)).state != "active":
        raise wrong("target_id", f"{peering.name} is {peering.state}: a route may name a peering once it is accepted.")
    if found is None:
        what = f"{label} {target_id[:64]}" if target_id else label
        raise wrong("target_id", f"{table.vpc.name} has no {what}: the route would lead nowhere.")
    return str(found)


@operation(RouteTable, "remove_route", label="Remove a route", needs="write", in_menu=False)
def route_table_remove_route(ctx: Context, table: RouteTable, *, route: RouteId) -> None:
    """Remove a route, named by its id or destination."""
    vpc_touch(ctx, table.vpc_id)
    found = next((each for each in table.routes if route in (each.id, each.destination_cidr)), None)
    if found is None:
        local = f" The route of the VPC's own range {table.vpc.cidr_block} cannot be removed." if route in ("local", table.vpc.cidr_block) else ""
        raise NotFound(f"There is no route {route[:64]} in {table.name}.{local}")
    table.routes.remove(found)
    ctx.db.flush()


@operation(RouteTable, "set_default_route", label="Set the default route", needs="write", in_menu=False)
def route_table_set_default_route(ctx: Context, table: RouteTable, *, target_type: TargetType, target_id: TargetId = "") -> None:
    """Lead everything that has no other route to this."""
    vpc_touch(ctx, table.vpc_id)
    target = _target(ctx, table, target_type, target_id)
    found = next((each for each in table.routes if each.destination_cidr == ANYWHERE), None)
    if found is None:
        table.routes.append(Route(destination_cidr=ANYWHERE, target_type=target_type, target_id=target))
    else:
        found.target_type, found.target_id = target_type, target
    ctx.db.flush()


@operation(RouteTable, "associate", label="Give to a subnet", needs="write")
def route_table_associate(ctx: Context, table: RouteTable, *, subnet: Annotated[Subnet, SUBNET_FIELD]) -> None:
    """Let a subnet use this table."""
    if subnet.vpc_id != table.vpc_id:
        raise wrong("subnet", f"{subnet.name} is a subnet of another VPC.")
    # It is a change of the subnet as well.
    also_changes(ctx, "networking.subnet.update", subnet)
    vpc_touch(ctx, table.vpc_id)
    subnet.route_table_id = table.id


@operation(RouteTable, "disassociate", label="Take from a subnet", needs="write")
def route_table_disassociate(ctx: Context, table: RouteTable, *, subnet: Annotated[Subnet, SUBNET_FIELD]) -> None:
    """Let a subnet use the main table again."""
    if subnet.route_table_id != table.id:
        raise Conflict(f"{subnet.name} does not use {table.name}.", details={"route_table_id": subnet.route_table_id or "main"})
    also_changes(ctx, "networking.subnet.update", subnet)
    vpc_touch(ctx, table.vpc_id)
    subnet.route_table_id = None


@operation(RouteTable, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True)
def route_table_delete(ctx: Context, table: RouteTable) -> None:
    """Delete a table that no subnet uses."""
    if table.is_main:
        raise Conflict(f"{table.name} is the main table of its VPC and goes with it.", details={"is_main": True})
    vpc_touch(ctx, table.vpc_id)
    users = named_rows(ctx, Subnet, Subnet.route_table_id == table.id)
    if users:
        raise Conflict(f"{table.name} is used by {', '.join(users)}. Take it from these first.", details={"in_the_way": users})


def table_at_end(ctx: Context, table: RouteTable) -> None:
    """Its routes go with it."""
    table.routes.clear()
    ctx.db.flush()


def routes_to(ctx: Context, target_id: str) -> list[str]:
    """The tables with routes that lead to something, as `destination in table`."""
    leading = (Route.target_id == target_id, RouteTable.deleted_at.is_(None))
    query = select(Route.destination_cidr, RouteTable.id, RouteTable.name).join(Route.table).where(*leading)
    hidden = unseen(ctx, RouteTable, RouteTable.id, RouteTable.id.in_(select(Route.route_table_id).where(Route.target_id == target_id)))
    found = ctx.db.execute(query.order_by(RouteTable.name).limit(NAMED)).all()
    return [f"{destination} in {UNSEEN if table_id in hidden else name}" for destination, table_id, name in found]


def live_targets(ctx: Context, table: RouteTable) -> set[str]:
    """The ids among a table's targets that are still there."""
    wanted: dict[str, list[str]] = {}
    for route in table.routes:
        wanted.setdefault(route.target_type, []).append(route.target_id)
    found: set[str] = set()
    for target_type, ids in wanted.items():
        model = MODELS[target_type]
        conditions = [model.id.in_(ids), model.deleted_at.is_(None)]
        if model is InternetGateway:
            conditions.append(model.vpc_id == table.vpc_id)
        elif model is not NetworkInterface:
            conditions.append(model.state.in_(("active",) if model is VpcPeering else ("available", "pending")))
        found |= set(ctx.db.scalars(select(model.id).where(*conditions)))
    return found


def _shown(route: Route) -> dict[str, str]:
    return dict(zip(SHOWN, (route.id, route.destination_cidr, route.target_type, route.target_id), strict=True))


def _eager() -> list[Any]:
    return [joinedload(RouteTable.vpc), selectinload(RouteTable.routes), selectinload(RouteTable.subnets)]


ROUTE_TABLE = ResourceType(
    RouteTable, service="networking", name="route_table", collection="route-tables", prefix="rtb", label="Route table", plural="Route tables",
    icon="updown", summary="Where packets go that leave a VPC's own range.",
    operations=[route_table_create, route_table_add_route, route_table_set_default_route, route_table_remove_route, route_table_associate,
                route_table_disassociate, route_table_delete, update_operation(RouteTable)],
    columns=[Column("name", "Name", sort="name"), Column("vpc_name", "VPC", css="md"), Column("route_count", "Routes", css="num"),
             Column("is_main", "Main", css="lo"), Column("created_at", "Created", sort="created_at", css="lo")],
    eager=_eager, aliases={"vpc": "vpc_id", "rt_id": "id"}, at_end=table_at_end, goes_with="networking.vpc", part_of=lambda v: (v.vpc,),
    show={"vpc_name": lambda v: v.vpc.name, "route_count": lambda v: len(v.routes) + 1,
          "routes": lambda v: [_shown(each) for each in v.routes],
          "associated_subnets": lambda v: [each.id for each in v.subnets], "status": lambda v: applied(v.vpc)},
    shapes={"routes": {"type": "array", "items": {"type": "object", "properties": {key: {"type": "string"} for key in SHOWN}, "required": sorted(SHOWN)}}},
    describe=lambda v: (v.vpc.name, "main" if v.is_main else ""),
)  # fmt: skip
