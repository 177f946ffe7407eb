"""What the services of machines, networks and volumes ask of each other; the catalogue joins them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from portal.engines.ports import MachineInterface, MachineSample, MachineVolume
from portal.kernel.context import Context

if TYPE_CHECKING:
    from portal.kernel.runner import StepRun


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a new machine is to be: whatever is empty is the project's default."""

    vpc_id: str = ""
    subnet_id: str = ""
    group_ids: Sequence[str] = ()
    private_ip: str = ""


@dataclass(frozen=True, slots=True)
class ProjectNetwork:
    """The default VPC of a project; where it has none, why."""

    vpc_id: str | None
    reason: str = ""


class GuestNetworks(Protocol):
    """What networks do for machines, and for projects that machines are going to be in."""

    def begin(self, ctx: Context, project_id: str) -> None:
        """Give a new project its default network, within the caller's transaction; a project is made without one where that cannot be."""
        ...

    def of_project(self, ctx: Context, project_id: str) -> ProjectNetwork:
        """The default network of a project, or why there is none."""
        ...

    def check(self, ctx: Context, wanted: Placement, *, count: int) -> None:
        """Raise InvalidRequest or Conflict for a place that machines cannot have."""
        ...

    def connect(self, ctx: Context, instance: Any, wanted: Placement) -> None:
        """Give a new machine its first interface, within the caller's transaction."""
        ...

    def ensure(self, run: "StepRun", instance_id: str) -> str:
        """Have the machine's networks on the host as they should be; what to tell of it. Raises EngineError."""
        ...

    def interfaces(self, run: "StepRun", instance_id: str, *, without: str = "") -> Sequence[MachineInterface]:
        """The network cards of a machine, or all but one; none means outbound user networking."""
        ...

    def renamed(self, ctx: Context, instance_id: str) -> None:
        """Let names follow the machine's."""
        ...

    def disconnect(self, ctx: Context, instance: Any) -> None:
        """Take the interfaces of a machine that is gone, within the caller's transaction."""
        ...


class GuestVolumes(Protocol):
    """What volumes do for machines."""

    def begin(self, ctx: Context, instance: Any, *, encrypted: bool = False) -> None:
        """Give a new machine its root volume, within the caller's transaction."""
        ...

    def refuse_locked(self, ctx: Context, instance_id: str) -> None:
        """Raise Conflict if a volume of a machine is encrypted with a key that must not be used now."""
        ...

    def refuse_read(self, ctx: Context, instance_id: str) -> None:
        """Raise Conflict while what volumes that go with a machine hold has yet to be read."""
        ...

    def ensure_root(self, run: "StepRun", instance_id: str, image_id: str) -> bool:
        """Have the root volume of a machine on the host, made from the image; False if it has none. Raises EngineError."""
        ...

    def drop_root(self, run: "StepRun", instance_id: str, *, reason: str) -> None:
        """Remove the content of the root volume of a machine that is off; the reason stands with it until it has some again. Raises EngineError."""
        ...

    def of_machine(self, run: "StepRun", instance_id: str, *, without: str = "") -> Sequence[MachineVolume]:
        """The volumes of a machine, or all but one."""
        ...

    def drop(self, run: "StepRun", instance_id: str) -> str:
        """Remove those that go with a machine that is gone from the host; what to tell of it. Raises EngineError."""
        ...

    def leave(self, ctx: Context, instance: Any) -> None:
        """End what was dropped with a machine and let go of the others, within the caller's transaction."""
        ...

    def export(self, run: "StepRun", snapshot_id: str, path: Path) -> None:
        """Write what a snapshot holds as an image. Raises EngineError."""
        ...

    def measured(self, ctx: Context, samples: Sequence[MachineSample]) -> None:
        """Keep what machines have done to their volumes, in a transaction of its own."""
        ...

    def users_of_image(self, ctx: Context, image_id: str) -> int:
        """How many volumes and snapshots are built on an image."""
        ...


class Machines(Protocol):
    """What machines do for networks and volumes."""

    def refit(self, run: "StepRun", instance_id: str, *, without: str = "") -> None:
        """Make the network cards of a machine those that it should have, or all but one. Raises EngineError."""
        ...

    def refit_volumes(self, run: "StepRun", instance_id: str, *, without: str = "", is_forced: bool = False) -> bool:
        """Make the volumes of a machine those that it should have, or all but one. Raises EngineError.

        If it `is_forced`, it matters neither if the guest lets go nor if the machine is still there; True if it had to lose its power.
        """
        ...

    def ensure_image(self, run: "StepRun", image_id: str) -> None:
        """Have an image on the host before something is made from it. Raises EngineError."""
        ...
