"""What the kernel knows of projects: whether one is there, and whether it is being deleted."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.kernel.errors import NotFound, StateConflict
from portal.kernel.jobs import active_for
from portal.kernel.tables import PROJECTS


def is_there(session: Session, project_id: str) -> bool:
    """Whether there is such a project and it has not been deleted."""
    return session.scalar(select(PROJECTS.c.id).where(PROJECTS.c.id == project_id, PROJECTS.c.deleted_at.is_(None))) is not None


def is_open(session: Session, project_id: str) -> bool:
    """Whether a project is there and is not being deleted."""
    return is_there(session, project_id) and active_for(session, project_id) is None


def refuse_ending(session: Session, project_id: str | None) -> None:
    """Raise NotFound for a project that has been deleted, StateConflict for one that is being deleted.

    Asked after a row that refers to the project is written: the database makes that wait for whoever has the project locked, so what is made in
    a project is either seen by its deletion or refused here.
    """
    if project_id is None:
        return
    if not is_there(session, project_id):
        raise NotFound("The project has been deleted.")
    if (job := active_for(session, project_id)) is not None:
        raise StateConflict("The project is being deleted: nothing new is made in it, and nothing is changed.", details={"job_id": job.id})
