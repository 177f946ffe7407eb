"""Who asks, from where, in which project: handed explicitly to everything that decides or changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from portal.settings import Settings

if TYPE_CHECKING:
    from portal.kernel.resource import Registry


@dataclass(frozen=True, slots=True)
class Grant:
    """A role held in one project, or on the whole platform where `project_id` is None."""

    role: str
    project_id: str | None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts, and with which credential: `session:…`, `token:…`, `cli` or `system`."""

    user_id: str | None
    username: str
    credential: str
    grants: tuple[Grant, ...] = ()
    is_system: bool = False


SYSTEM = Principal(user_id=None, username="system", credential="system", is_system=True)
ANONYMOUS = Principal(user_id=None, username="anonymous", credential="none")


def _nobody_waits(job_ids: Sequence[str]) -> None:
    """Workers find the jobs by themselves."""
    del job_ids


@dataclass(slots=True)
class Context:
    """Everything an operation may know of the request it serves."""

    db: Session
    settings: Settings
    registry: "Registry"
    principal: Principal
    project_id: str | None = None
    request_id: str = ""
    source: str = "service"
    source_ip: str = ""
    user_agent: str = ""
    idempotency_key: str = ""
    deliver: Callable[[Sequence[str]], None] = _nobody_waits
