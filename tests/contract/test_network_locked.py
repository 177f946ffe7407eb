"""A lock of a VPC holds for what is part of it, on every way there; instances come and go."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask.testing import FlaskClient

from portal.compute.instances import instance_create, instance_terminate
from portal.kernel.declare import Operation
from portal.kernel.errors import Conflict
from portal.kernel.operations import run
from portal.kernel.resource import Registry
from portal.networking.elastic_ips import elastic_ip_associate, elastic_ip_create, elastic_ip_disassociate
from portal.networking.gateways import (
    internet_gateway_create,
    internet_gateway_delete,
    internet_gateway_detach,
    nat_gateway_create,
    nat_gateway_delete,
)
from portal.networking.interfaces import network_interface_attach, network_interface_create, network_interface_delete, network_interface_detach
from portal.networking.models import SecurityGroup, Subnet, VpcPeering
from portal.networking.peerings import vpc_peering_create, vpc_peering_delete
from portal.networking.routes import route_table_add_route, route_table_associate, route_table_create, route_table_delete
from portal.networking.security_groups import security_group_add_rule, security_group_create, security_group_delete
from portal.networking.subnets import subnet_create, subnet_delete, subnet_reserve_address, subnet_set_tier
from portal.networking.vpc import vpc_configure_flow_logs, vpc_create, vpc_delete
from portal.storage.volumes import volume_attach, volume_create
from tests.contract.test_iam import allow, attach, write
from tests.contract.test_network_hidden import NETWORK, SECRET
from tests.support.draining import TestWorker
from tests.support.scenarios import TINY, Stage, public_subnet, some_vpc
from tests.support.web import Api


def verb(stage: Stage, name: str) -> Operation:
    return stage.ctx.registry.operation(name)


@dataclass
class Net:
    """A VPC with everything in it that can be in one."""

    stage: Stage

    def __post_init__(self) -> None:
        do, registry = self.stage.do, self.stage.ctx.registry
        self.subnet = public_subnet(self.stage)
        self.vpc_id, self.default_group = self.subnet.vpc_id, self.subnet.vpc.default_group_id
        self.gateway_id = self.stage.ctx.db.query(registry.model("networking.internet_gateway")).filter_by(vpc_id=self.vpc_id).one().id
        self.group = do(security_group_create, name="web-group", vpc=self.vpc_id)
        self.table = do(route_table_create, name="table", vpc=self.vpc_id)
        self.nat = do(nat_gateway_create, name="nat", subnet=self.subnet.id)
        self.card = do(network_interface_create, name="card", subnet=self.subnet.id)
        self.guest = do(instance_create, name="guest", flavor="t3-micro", image=TINY, subnet_id=self.subnet.id)
        self.plugged = do(network_interface_create, name="plugged", subnet=self.subnet.id)
        do(network_interface_attach, self.plugged.id, instance=self.guest.id)
        self.address, self.led = do(elastic_ip_create, name="free"), do(elastic_ip_create, name="led")
        do(elastic_ip_associate, self.led.id, target_type="network-interface", target_id=self.card.id)
        self.other = do(vpc_create, name="other", cidr_block="10.99.0.0/16")
        self.third = do(vpc_create, name="third", cidr_block="10.98.0.0/16")
        self.peering = do(vpc_peering_create, name="both", vpc=self.vpc_id, peer_vpc=self.other.id)

    def changes(self) -> Iterator[tuple[Operation, str | None, dict[str, Any]]]:
        vpc, subnet = self.vpc_id, self.subnet.id
        yield vpc_configure_flow_logs, vpc, {"enabled": True}
        yield vpc_delete, vpc, {"force": True}
        yield subnet_create, None, {"name": "new", "vpc": vpc, "cidr_block": "10.0.200.0/24"}
        yield subnet_set_tier, subnet, {"tier": "public"}
        yield subnet_reserve_address, subnet, {}
        yield subnet_delete, subnet, {}
        yield verb(self.stage, "networking.subnet.update"), subnet, {"name": "renamed"}
        yield security_group_create, None, {"name": "new", "vpc": vpc}
        yield security_group_add_rule, self.group.id, {"from_port": 80, "cidr": "0.0.0.0/0"}
        yield security_group_delete, self.group.id, {}
        yield route_table_create, None, {"name": "new", "vpc": vpc}
        yield route_table_add_route, self.table.id, {"destination_cidr": "0.0.0.0/0", "target_type": "internet-gateway"}
        yield route_table_associate, self.table.id, {"subnet": subnet}
        yield route_table_delete, self.table.id, {}
        yield internet_gateway_detach, self.gateway_id, {}
        yield internet_gateway_delete, self.gateway_id, {"force": True}
        yield nat_gateway_create, None, {"name": "new", "subnet": subnet}
        yield nat_gateway_delete, self.nat.id, {}
        yield network_interface_create, None, {"name": "new", "subnet": subnet}
        yield network_interface_attach, self.card.id, {"instance": self.guest.id}
        yield network_interface_detach, self.plugged.id, {}
        yield network_interface_delete, self.card.id, {}
        yield elastic_ip_associate, self.address.id, {"target_type": "instance", "target_id": self.guest.id}
        yield elastic_ip_associate, self.address.id, {"target_type": "nat-gateway", "target_id": self.nat.id}
        yield elastic_ip_disassociate, self.led.id, {}
        yield vpc_peering_create, None, {"name": "new", "vpc": vpc, "peer_vpc": self.third.id}
        yield vpc_peering_create, None, {"name": "new", "vpc": self.third.id, "peer_vpc": vpc}
        yield vpc_peering_delete, self.peering.id, {}


@pytest.fixture
def net(stage: Stage) -> Net:
    return Net(stage)


def lock(stage: Stage, key: str, row_id: str) -> None:
    stage.do(verb(stage, f"{key}.lock"), row_id)


def test_nothing_in_a_locked_vpc_changes(stage: Stage, net: Net) -> None:
    lock(stage, "networking.vpc", net.vpc_id)
    revision = stage.ctx.db.get_one(type(net.other), net.vpc_id).desired_revision
    for op, target, data in net.changes():
        with pytest.raises(Conflict, match="is locked against changes") as refused:
            run(stage.ctx, op, target, data)
        assert refused.value.details == {"locked": True}, op.verb
    lock(stage, "networking.vpc", net.third.id)
    with pytest.raises(Conflict, match="is locked against changes"):
        run(stage.ctx, internet_gateway_create, None, {"name": "new", "vpc": net.third.id})
    stage.ctx.db.rollback()
    assert stage.ctx.db.get_one(type(net.other), net.vpc_id, populate_existing=True).desired_revision == revision


def test_what_it_holds_for_is_all_that_goes_with_a_vpc(registry: Registry, stage: Stage, net: Net) -> None:
    del net
    vpc = registry.model("networking.vpc")
    for rtype in registry:
        if rtype.goes_with == "networking.vpc" and rtype.name != "elastic_ip":
            row = stage.ctx.db.query(rtype.model).filter(rtype.model.deleted_at.is_(None)).first()
            assert [type(each) for each in rtype.part_of(row)][:1] == [vpc], rtype.key


def test_instances_come_and_go_in_a_locked_vpc(stage: Stage, net: Net) -> None:
    lock(stage, "networking.vpc", net.vpc_id)
    guest = stage.do(instance_create, name="another", flavor="t3-micro", image=TINY, subnet_id=net.subnet.id)
    assert guest.state == "running"
    assert stage.do(instance_terminate, guest.id).state == "terminated"


def test_a_peering_ends_with_its_other_side_whatever_is_locked(stage: Stage, net: Net) -> None:
    lock(stage, "networking.vpc", net.vpc_id)
    assert stage.do(vpc_delete, net.other.id, force=True).state == "deleted"
    assert stage.ctx.db.get_one(VpcPeering, net.peering.id, populate_existing=True).state == "deleted"


def test_once_it_is_unlocked_all_goes_on(stage: Stage, net: Net) -> None:
    lock(stage, "networking.vpc", net.vpc_id)
    stage.do(verb(stage, "networking.vpc.unlock"), net.vpc_id)
    assert stage.do(subnet_set_tier, net.subnet.id, tier="database").tier == "database"
    assert stage.ctx.db.get_one(Subnet, net.subnet.id).tier == "database"


def test_nothing_is_plugged_into_a_locked_instance(stage: Stage, net: Net) -> None:
    lock(stage, "compute.instance", net.guest.id)
    volume = stage.do(volume_create, name="data", size_gb=1)
    for op, target, data in (
        (network_interface_attach, net.card.id, {"instance": net.guest.id}), (network_interface_detach, net.plugged.id, {}),
        (volume_attach, volume.id, {"instance": net.guest.id}),
    ):  # fmt: skip
        with pytest.raises(Conflict, match="guest is locked against changes"):
            run(stage.ctx, op, target, data)


def test_the_console_says_so_where_it_would_be_changed(stage: Stage, client_for: Callable[..., FlaskClient]) -> None:
    vpc = some_vpc(stage)
    group = stage.ctx.db.get_one(SecurityGroup, vpc.default_group_id)
    page = client_for("project_admin")
    assert "what is part of it" not in page.get(f"/networking/security-groups/{group.id}/rules").text
    lock(stage, "networking.vpc", vpc.id)
    assert f"{vpc.name} is locked against changes, and so is what is part of it" in page.get(f"/networking/security-groups/{group.id}/rules").text


def test_a_refusal_names_no_end_that_the_caller_may_not_see(api_for: Callable[..., Api], worker: TestWorker) -> None:
    admin, developer = api_for("project_admin"), api_for("developer")
    admin.post(f"{NETWORK}/vpcs", {"name": "net", "cidr_block": "10.0.0.0/16"})
    subnet = admin.post(f"{NETWORK}/subnets", {"name": "front", "vpc": "net", "cidr_block": "10.0.1.0/24"}).json["id"]
    guest = admin.post("/compute/instances", {"name": SECRET, "flavor": "t3-micro", "image": TINY, "subnet_id": subnet}).json["id"]
    card = admin.post(f"{NETWORK}/network-interfaces", {"name": "card", "subnet": subnet}).json["id"]
    worker.drain()
    assert admin.post(f"{NETWORK}/network-interfaces/{card}/attach", {"instance": guest}).status_code == 202
    worker.drain()
    hide_instance(admin, developer, guest)
    answer = developer.post(f"{NETWORK}/network-interfaces/{card}/detach", {})
    assert (answer.status_code, SECRET in answer.text) == (403, False), answer.text
    assert "on something that you may not see" in answer.json["message"]


def hide_instance(admin: Api, api: Api, row_id: str) -> None:
    rules = [allow(f"compute.instance.{verb}", effect="Deny", StringEquals={"resource.id": row_id}) for verb in ("read", "update")]
    for number, each in enumerate(rules):
        attach(admin, write(admin, f"hide-{number}", each), api.user.id)
