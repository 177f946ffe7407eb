"""The ledger of background work: a job is a row, claimed under a lease, made of steps that each may be repeated.

Delivery (polling or a broker) only shortens the way to a worker. Whatever happens to a worker or a broker, the row says what is to be done:
a lease that runs out gives the job to the next worker, which goes on at the first step that is not done.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, String, Text, and_, case, func, or_, select, text, update
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from portal.kernel.db import Base, JsonColumn, UtcDateTime, now, transaction
from portal.kernel.ids import new_id

ACTIVE = ("queued", "running", "retrying")
ENDED = ("succeeded", "failed", "cancelled", "dead")
ACTIVE_SQL = text("state IN ('queued', 'running', 'retrying')")
MAX_CRASHES = 5


class Job(Base):
    """One piece of background work on one resource."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("job"))
    kind: Mapped[str] = mapped_column(String(128))
    label: Mapped[str] = mapped_column(String(255))
    resource_type: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(64))
    resource_name: Mapped[str] = mapped_column(String(255), default="")
    project_id: Mapped[str | None] = mapped_column(String(64))
    user_id: Mapped[str | None] = mapped_column(String(64))
    username: Mapped[str] = mapped_column(String(255), default="system")
    request_id: Mapped[str] = mapped_column(String(64), default="")
    state: Mapped[str] = mapped_column(String(16), default="queued")
    phase: Mapped[str] = mapped_column(String(8), default="do")
    input: Mapped[dict[str, Any]] = mapped_column(JsonColumn, default=dict)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    crashes: Mapped[int] = mapped_column(Integer, default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    error: Mapped[str] = mapped_column(Text, default="")
    run_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)

    steps: Mapped[list["JobStep"]] = relationship(order_by="JobStep.position", cascade="all, delete-orphan", lazy="selectin")

    __table_args__ = (
        # One running job per resource, whatever the code above it thinks.
        Index("uq_jobs_active_resource", "resource_id", unique=True, sqlite_where=ACTIVE_SQL, postgresql_where=ACTIVE_SQL),
        Index("ix_jobs_claim", "run_at", "id", sqlite_where=ACTIVE_SQL, postgresql_where=ACTIVE_SQL),
        Index("ix_jobs_project", "project_id", "created_at", "id"),
        Index("ix_jobs_user", "user_id", "created_at", "id"),
        Index("ix_jobs_resource", "resource_id", "created_at"),
    )

    @property
    def progress(self) -> int:
        """Percent of the steps that are done."""
        if self.state == "succeeded":
            return 100
        return round(100 * sum(step.state == "done" for step in self.steps) / len(self.steps)) if self.steps else 0


class JobStep(Base):
    """One step of a job; states: todo, running, done, failed, undone, stopped (what it did stays)."""

    __tablename__ = "job_steps"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(64))
    label: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16), default="todo")
    detail: Mapped[str] = mapped_column(Text, default="")
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Schedule(Base):
    """When a piece of periodic work is due next."""

    __tablename__ = "schedules"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    next_run_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_run_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class LeaseLost(Exception):
    """Another worker has taken the job over; this one must not write any more."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job until the lease runs out, unless it is renewed."""

    job_id: str
    owner: str


def claim_next(
    session: Session, *, worker: str, lease_s: float, kinds: Sequence[str] | None = None, older_than_s: float = 0.0, urgent: Sequence[str] = ()
) -> Claim | None:  # fmt: skip
    """Take a job that is due: of an urgent kind, else of the project for which the fewest run, and of these the one that is due longest.

    `older_than_s` leaves those alone that a broker will deliver any moment (it never delivers another try).
    """
    moment = now()
    # The first condition is the partial index's own: bound values would keep SQLite from using it.
    due = select(Job.id).where(ACTIVE_SQL, Job.state.in_(("queued", "retrying")), Job.run_at <= moment)
    if older_than_s:
        due = due.where(or_(Job.state == "retrying", Job.run_at <= moment - timedelta(seconds=older_than_s)))
    if kinds is not None:
        due = due.where(Job.kind.in_(kinds))
    # Look before locking: an idle worker must not hold the write lock of SQLite ten times a second.
    session.rollback()
    found = session.execute(due.order_by(Job.run_at, Job.id).limit(1)).first()
    running = select(Job.project_id, func.count()).where(ACTIVE_SQL, Job.state == "running", Job.project_id.is_not(None)).group_by(Job.project_id)
    busy = {project_id: count for project_id, count in session.execute(running)} if found is not None else {}  # noqa: C416 - rows are no tuples
    session.rollback()
    if found is None:
        return None
    # Whoever queues many jobs lets nobody else wait for all of them.
    turns = [case(busy, value=Job.project_id, else_=0)] if busy else []
    first = due.order_by(case((Job.kind.in_(urgent), 0), else_=1), *turns, Job.run_at, Job.id).limit(1)
    with transaction(session):
        job_id = session.scalar(first.with_for_update(skip_locked=True))
        return _take(session, job_id, worker, lease_s) if job_id else None


def claim(session: Session, job_id: str, *, worker: str, lease_s: float) -> Claim | None:
    """Take this job if it is due and nobody has it."""
    with transaction(session):
        # A queued job is due at once, whatever the clock of the host that queued it says; only another try has to wait.
        ready = or_(Job.state == "queued", and_(Job.state == "retrying", Job.run_at <= now()))
        due = select(Job.id).where(Job.id == job_id, ready)
        return _take(session, job_id, worker, lease_s) if session.scalar(due.with_for_update(skip_locked=True)) else None


def _take(session: Session, job_id: str, worker: str, lease_s: float) -> Claim:
    owner = f"{worker}/{secrets.token_hex(6)}"
    session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(state="running", lease_owner=owner, lease_until=now() + timedelta(seconds=lease_s), started_at=func.coalesce(Job.started_at, now()))
        .execution_options(synchronize_session=False)
    )
    return Claim(job_id, owner)


def renew(session: Session, claims: Sequence[Claim], *, lease_s: float) -> list[Claim]:
    """Extend leases; gives back the claims that are lost."""
    if not claims:
        return []
    owners = [claim.owner for claim in claims]
    with transaction(session):
        mine = set(
            session.scalars(
                update(Job)
                .where(Job.id.in_([claim.job_id for claim in claims]), Job.lease_owner.in_(owners), Job.state == "running")
                .values(lease_until=now() + timedelta(seconds=lease_s))
                .returning(Job.lease_owner)
                .execution_options(synchronize_session=False)
            )
        )
    return [claim for claim in claims if claim.owner not in mine]


def give_back(job: Job) -> None:
    """Put a job back into the queue within the caller's transaction; that is no crash."""
    job.state, job.lease_owner, job.lease_until, job.run_at = "queued", None, None, now()


def release(session: Session, claim: Claim) -> None:
    """Put a claimed job back into the queue, as a worker does that has to go; one that is lost is no longer ours to give."""
    with suppress(LeaseLost), transaction(session):
        give_back(held(session, claim))


def _unknown(_owner: str) -> bool:
    return False


def reap(session: Session, is_gone: Callable[[str], bool] = _unknown) -> list[str]:
    """Give jobs back to the queue whose worker went silent, or of which somebody knows that it is gone; their ids."""
    running = and_(ACTIVE_SQL, Job.state == "running")
    session.rollback()
    owners = session.execute(select(Job.lease_owner, Job.lease_until).where(running)).all()
    session.rollback()
    gone = [owner for owner, _ in owners if owner and is_gone(owner.rpartition("/")[0])]
    moment = now()
    if not gone and all(until is None or until >= moment for _, until in owners):
        return []
    silent = and_(running, or_(Job.lease_until < now(), Job.lease_owner.in_(gone)))
    with transaction(session):
        return list(
            session.scalars(
                update(Job)
                .where(silent)
                .values(state="queued", lease_owner=None, lease_until=None, crashes=Job.crashes + 1, run_at=now())
                .returning(Job.id)
                .execution_options(synchronize_session=False)
            )
        )


def held(session: Session, claim: Claim) -> Job:
    """The job of a claim, locked, within the caller's transaction. Raises LeaseLost if it is somebody else's by now."""
    job = session.scalars(select(Job).where(Job.id == claim.job_id).with_for_update().execution_options(populate_existing=True)).one_or_none()
    if job is None or job.lease_owner != claim.owner or job.state != "running":
        raise LeaseLost(claim.job_id)
    return job


def active_for(session: Session, resource_id: str) -> Job | None:
    """The job that is at work on a resource."""
    return session.scalars(select(Job).where(Job.resource_id == resource_id, Job.state.in_(ACTIVE))).first()
