"""What instances are called in their VPC: each by a name of its own, as close to the instance's as a name can be."""

from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.kernel.ids import hostname
from portal.kernel.resource import Registry
from portal.networking.models import NetworkInterface, Vpc

LONGEST = 63


def domain_of(vpc: Vpc) -> str:
    """The domain in which the names of a VPC are."""
    return f"{hostname(vpc.name)}.internal"


def labels(instances: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The label of each instance, of ids and names with the oldest first.

    Who is called exactly so has the name, whoever came first: names are unique in a project, so nobody takes it over. Of others with the same label
    the first one has it, further ones get a number.
    """
    known = list(instances)
    found = {identifier: name for identifier, name in known if hostname(name) == name}
    taken, last = set(found.values()), defaultdict[str, int](lambda: 1)
    for identifier, name in known:
        if identifier in found:
            continue
        label = wanted = hostname(name)
        while label in taken:
            last[wanted] += 1
            end = f"-{last[wanted]}"
            label = wanted[: LONGEST - len(end)] + end
        found[identifier] = label
        taken.add(label)
    return found


def name_of(session: Session, registry: Registry, vpc: Vpc, instance_id: str) -> str:
    """The full name of an instance in a VPC; empty where it has none."""
    if not (vpc.enable_dns_support and vpc.enable_dns_hostnames):
        return ""
    instance = registry.model("compute.instance")
    query = (
        select(instance.id, instance.name)
        .join(NetworkInterface, NetworkInterface.instance_id == instance.id)
        .where(NetworkInterface.vpc_id == vpc.id, NetworkInterface.is_primary, NetworkInterface.deleted_at.is_(None))
        .where(NetworkInterface.state != "detaching", instance.deleted_at.is_(None))
    )
    rows = session.execute(query.order_by(instance.created_at, instance.id))
    label = labels((row.id, row.name) for row in rows).get(instance_id)
    return f"{label}.{domain_of(vpc)}" if label else ""
