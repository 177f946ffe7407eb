"""Who asks, from where, in which project: handed explicitly to everything that decides or changes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from portal.settings import Settings

if TYPE_CHECKING:
    from portal.kernel.authz import Access
    from portal.kernel.policy import Statement
    from portal.kernel.resource import Registry


@dataclass(frozen=True, slots=True)
class Grant:
    """A role held in one project, or on the whole platform where `project_id` is None.

    `role` is a built-in role or the id of a policy that somebody wrote, whose `statements` the grant then carries; `via` says how it came.
    """

    role: str
    project_id: str | None
    label: str = ""
    statements: "tuple[Statement, ...]" = ()
    via: str = ""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.label or self.role.replace("_", " ").capitalize()


@dataclass(frozen=True, slots=True)
class Limit:
    """What must allow an action besides the grants, in one project or everywhere: scopes of a token, a permission boundary."""

    label: str
    statements: "tuple[Statement, ...]"
    project_id: str | None = None


@dataclass(frozen=True, slots=True)
class Assumed:
    """A role that is acted in, in place of all that the user holds, and the session that it was assumed for."""

    role_id: str
    role_name: str
    project_id: str
    session_name: str


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts, and with which credential: `session:…`, `token:…`, `role:…`, `cli` or `system`. `access` is the grants compiled, where somebody keeps it."""

    user_id: str | None
    username: str
    credential: str
    grants: tuple[Grant, ...] = ()
    is_system: bool = False
    limits: tuple[Limit, ...] = ()
    mfa: bool = False
    # Whether a role among the grants asks for a second factor.
    needs_factor: bool = False
    # Whether the secret was replaced by a newer one and only holds on for a while.
    is_replaced: bool = False
    # When the person behind a session last proved who they are.
    proved_at: datetime | None = None
    assumed: Assumed | None = None
    access: "Access | None" = field(default=None, compare=False, repr=False)

    @property
    def is_restricted(self) -> bool:
        """Whether the credential stands for less than its user: for some scopes, or for a role."""
        return bool(self.limits) or self.assumed is not None


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
    # When the principal was asked for (seconds of the monotonic clock), and how to ask again who is behind the credential: None for nobody any more.
    identified_at: float = field(default_factory=time.monotonic)
    identify_again: Callable[[], Principal | None] | None = None
    deliver: Callable[[Sequence[str]], None] = _nobody_waits
    # Jobs of other rows that the transaction under way has queued.
    also_queued: list[str] = field(default_factory=list)
    # Rows that came and went with others in the transaction under way: their quota is moved together, and then they are told of.
    made_along: list[Any] = field(default_factory=list)
    gone_along: list[Any] = field(default_factory=list)
    # What the request asks for, as it came: conditions of policies look at it.
    inputs: Mapping[str, Any] = field(default_factory=dict)
    # The moment that conditions see where one is imagined; now, for a request that is made.
    at: datetime | None = None
