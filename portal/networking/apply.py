"""Bringing a VPC on the host up to date. Several may do so at once: whoever ends last has seen the newest revision, and applied it."""

from sqlalchemy import select, update

from portal.engines.network_ports import NetworkEngine
from portal.engines.ports import EngineUnavailable
from portal.kernel.context import SYSTEM, Context
from portal.kernel.db import now, transaction
from portal.kernel.declare import Step
from portal.kernel.runner import StepRun
from portal.networking.desired import Desired, desired_state
from portal.networking.leaving import vpc_leaving
from portal.networking.models import Vpc, VpcPeering

RECONCILED = "the rows say what is desired; the next apply or the reconciler brings the host there"
BUSY = 20


def network_engine(run: StepRun) -> NetworkEngine:
    """The driver for networks. Raises EngineUnavailable."""
    if run.engines.network is None:
        raise EngineUnavailable("This installation makes no networks (ENGINE_NETWORK=none).")
    return run.engines.network


def in_force(run: StepRun, vpc_id: str) -> bool:
    """Whether all that is desired of a VPC has been brought to the host, and is still there as far as that is known."""
    if vpc_id not in network_engine(run).vpcs():
        return False
    with run.sessions() as session:
        return session.scalar(select(Vpc.applied_revision >= Vpc.desired_revision).where(Vpc.id == vpc_id)) or False


def apply_vpc(run: StepRun, vpc_id: str) -> None:
    """Make the host's VPC what its rows say, until nothing was changed meanwhile. Raises EngineError."""
    engine = network_engine(run)
    for _ in range(BUSY):
        with run.sessions() as session:
            wanted = desired_state(session, run.registry, vpc_id)
        if wanted is None:
            return
        engine.ensure_vpc(wanted.spec)
        for peering_id in wanted.gone:
            engine.remove_peering(peering_id)
        _link(run, engine, wanted)
        if _applied(run, vpc_id, wanted) <= wanted.revision:
            run.detail = f"revision {wanted.revision}"
            return
    # Changed at every turn: the job after this one goes on.
    run.detail = "changed while it was applied"


def _link(run: StepRun, engine: NetworkEngine, wanted: Desired) -> None:
    """Join peers that are both on the host; whichever comes second does."""
    if not wanted.peerings:
        return
    others = {vpc_id for peering in wanted.peerings for vpc_id in peering.vpc_ids} - {wanted.spec.vpc_id}
    with run.sessions() as session:
        there = set(session.scalars(select(Vpc.id).where(Vpc.id.in_(others), Vpc.applied_revision > 0, Vpc.deleted_at.is_(None))))
    linked = []
    for peering in wanted.peerings:
        if there & set(peering.vpc_ids):
            engine.ensure_peering(peering)
            linked.append(peering.peering_id)
    if linked:
        with run.sessions() as session, transaction(session):
            session.execute(
                update(VpcPeering).where(VpcPeering.link_id.in_(linked)).values(is_linked=True).execution_options(synchronize_session=False)
            )


def _applied(run: StepRun, vpc_id: str, wanted: Desired) -> int:
    """Keep what was applied; the revision that is desired by now."""
    with run.sessions() as session, transaction(session):
        if wanted.gone:
            session.execute(
                update(VpcPeering).where(VpcPeering.link_id.in_(wanted.gone)).values(is_linked=False).execution_options(synchronize_session=False)
            )
        newer = update(Vpc).where(Vpc.id == vpc_id, Vpc.applied_revision < wanted.revision).values(applied_revision=wanted.revision)
        session.execute(newer.execution_options(synchronize_session=False))
        # A default network that came with the first instance has no job of its own: the instance's made it.
        made = update(Vpc).where(Vpc.id == vpc_id, Vpc.state == "pending").values(state="available", state_at=now())
        session.execute(made.execution_options(synchronize_session=False))
        return session.scalar(select(Vpc.desired_revision).where(Vpc.id == vpc_id)) or 0


def ensure_vpc(run: StepRun) -> None:
    """Bring the VPC up to date."""
    apply_vpc(run, run.row.id)


def ensure_vpc_of(run: StepRun) -> None:
    """Bring the VPC that the row belongs to up to date."""
    apply_vpc(run, run.row.vpc_id)


def remove_vpc(run: StepRun) -> None:
    """Take the VPC off the host, with everything in it."""
    run.detail = _goes_along(run)
    if run.engines.network is None and not run.row.applied_revision:
        return
    network_engine(run).remove_vpc(run.row.id)


def _goes_along(run: StepRun) -> str:
    with run.sessions() as session:
        ctx = Context(session, run.settings, run.registry, SYSTEM, project_id=run.row.project_id)
        found = vpc_leaving(ctx, session.get_one(Vpc, run.row.id)).resources
    return f"With {'; '.join(each.sentence for each in found)}." if found else "Nothing is in it."


def plug(run: StepRun) -> None:
    """Give the machine its network cards."""
    _refit(run)


def unplug(run: StepRun) -> None:
    """Take this network card out of the machine."""
    _refit(run, without=run.row.id)


def _refit(run: StepRun, *, without: str = "") -> None:
    if run.registry.machines is not None and run.row.instance_id:
        run.registry.machines.refit(run, run.row.instance_id, without=without)


APPLY = (Step(ensure_vpc, "Bring the network up to date", because=RECONCILED),)
APPLY_OF = (Step(ensure_vpc_of, "Bring the network up to date", because=RECONCILED),)
REMOVE = (Step(remove_vpc, "Remove the network", because="what is half gone is removed by the next try"),)
ATTACH = (*APPLY_OF, Step(plug, "Give the machine its network card", undo=unplug))
DETACH = (Step(unplug, "Take the network card out", undo=plug), *APPLY_OF)
