"""The steps of an instance's operations: each brings the host one piece closer to the row, and may be repeated at any time."""

from collections.abc import Sequence
from typing import Any

from portal.compute.images import compute_engine, ensure_image
from portal.engines.ports import MachineInterface, MachineSpec, MachineState, MachineVolume
from portal.kernel.db import now
from portal.kernel.declare import Step
from portal.kernel.ids import hostname
from portal.kernel.runner import StepRun

IMAGE_STAYS = "the image serves the next instance"
GOES_WITH_DISK = "removed together with the disk"
RECONCILED = "the reconciler finds the machine as it is and says so"


def spec_of(row: Any, flavor: Any = None, interfaces: Sequence[MachineInterface] = (), volumes: Sequence[MachineVolume] = ()) -> MachineSpec:
    """The machine that an instance's row asks for, or with another flavor."""
    flavor = flavor or row.flavor
    keys = [key for key in (row.key_pair.public_key if row.key_pair else "", row.public_key) if key]
    return MachineSpec(
        machine_id=row.id, hostname=hostname(row.name), vcpus=flavor.vcpus, memory_mib=flavor.memory_mb, root_disk_gib=row.root_volume_size_gb,
        image_id=row.image_id, ssh_public_keys=tuple(keys), user_data=row.user_data, metadata={"project_id": row.project_id}, interfaces=tuple(interfaces),
        volumes=tuple(volumes),
    )  # fmt: skip


def machine_of(run: StepRun, flavor: Any = None) -> MachineSpec:
    """The machine with the network cards and volumes that it has."""
    return _with_devices(run, run.row, flavor)


def _with_devices(run: StepRun, row: Any, flavor: Any = None, *, without: str = "") -> MachineSpec:
    """A machine with all its network cards and volumes but one."""
    networks, volumes = run.registry.networks, run.registry.volumes
    interfaces = networks.interfaces(run, row.id, without=without) if networks is not None else ()
    return spec_of(row, flavor, interfaces, volumes.of_machine(run, row.id, without=without) if volumes is not None else ())


def join_networks(run: StepRun) -> None:
    """Have the networks of the machine on the host, with its addresses and rules, before it boots."""
    networks = run.registry.networks
    run.detail = networks.ensure(run, run.row.id) if networks is not None else ""


class Machines:
    """Machines as networks and volumes see them."""

    def refit(self, run: StepRun, instance_id: str, *, without: str = "") -> None:
        """Make the network cards of a machine those that it should have, or all but one."""
        compute_engine(run).ensure_interfaces(_with_devices(run, self._row(run, instance_id), without=without))

    def refit_volumes(self, run: StepRun, instance_id: str, *, without: str = "", is_forced: bool = False) -> bool:
        """Make the volumes of a machine those that it should have, or all but one; by force also of one that does not answer or is gone."""
        engine = compute_engine(run)
        if is_forced and engine.machine_state(instance_id) is MachineState.ABSENT:
            return False
        return engine.ensure_volumes(_with_devices(run, self._row(run, instance_id), without=without), is_forced=is_forced)

    def ensure_image(self, run: StepRun, image_id: str) -> None:
        """Have an image on the host."""
        with run.sessions() as session:
            image = session.get_one(run.registry.model("compute.image"), image_id)
        ensure_image(run, image)

    @staticmethod
    def _row(run: StepRun, instance_id: str) -> Any:
        model = run.registry.model("compute.instance")
        with run.sessions() as session:
            return session.get_one(model, instance_id, options=run.registry.of(model).eager())


def prepare_image(run: StepRun) -> None:
    """Have the image in the host's store."""
    ensure_image(run, run.row.image)
    run.detail = run.row.image.name


def prepare_new_image(run: StepRun) -> None:
    """Have the image that the machine is to be rebuilt from in the host's store."""
    ensure_image(run, run.row.rebuild_to)
    run.detail = run.row.rebuild_to.name


def make_disk(run: StepRun) -> None:
    """Make the root disk from the image."""
    volumes = run.registry.volumes
    if volumes is None or not volumes.ensure_root(run, run.row.id, run.row.image_id):
        compute_engine(run).ensure_disk(machine_of(run))
    run.detail = f"{run.row.root_volume_size_gb} GiB"


def write_seed(run: StepRun) -> None:
    """Write hostname, keys and user data where the guest reads them."""
    compute_engine(run).ensure_seed(machine_of(run))


def define(run: StepRun) -> None:
    """Tell the hypervisor about the machine."""
    compute_engine(run).ensure_defined(machine_of(run))
    run.detail = f"{run.row.flavor.vcpus} vCPU, {run.row.flavor.memory_mb:,} MiB"


def boot(run: StepRun) -> None:
    """Start the machine."""
    compute_engine(run).ensure_running(run.row.id)


def pull_plug(run: StepRun) -> None:
    """Stop the machine at once."""
    compute_engine(run).ensure_stopped(run.row.id, graceful_timeout_s=0)


def shut_down(run: StepRun) -> None:
    """Ask the guest to shut down; pull the plug at once if that was asked for, else when its time is up."""
    hard = run.input.get("force") is True or run.input.get("type") == "hard"
    compute_engine(run).ensure_stopped(run.row.id, graceful_timeout_s=0 if hard else run.settings.stop_timeout_s)
    run.detail = "plug pulled" if hard else ""


def change_size(run: StepRun) -> None:
    """Give the stopped machine its new vCPU and memory."""
    compute_engine(run).ensure_defined(machine_of(run, run.row.resize_to))
    run.detail = run.row.resize_to.name


def change_size_back(run: StepRun) -> None:
    """Give the machine its former vCPU and memory."""
    compute_engine(run).ensure_defined(machine_of(run))


def drop_disk(run: StepRun) -> None:
    """Delete the root disk; from here on the machine is one of the new image."""
    compute_engine(run).remove_disk(run.row.id)
    if run.registry.volumes is not None:
        run.registry.volumes.drop_root(run, run.row.id, reason="It is being made from another image.")
    run.save(image_id=run.row.rebuild_to_id)


def replug(run: StepRun) -> None:
    """Plug in what has lost its place."""
    Machines().refit(run, run.row.id)


def erase(run: StepRun) -> None:
    """Remove the machine with its seed, logs and sockets, and a disk of its own."""
    compute_engine(run).remove_machine(run.row.id)


def drop_volumes(run: StepRun) -> None:
    """Remove the volumes that go with the machine."""
    volumes = run.registry.volumes
    run.detail = volumes.drop(run, run.row.id) if volumes is not None else ""


def unmake(run: StepRun) -> None:
    """Remove a machine that was not made to the end, with its root disk."""
    erase(run)
    if run.registry.volumes is not None:
        run.registry.volumes.drop_root(run, run.row.id, reason="Its instance could not be made.")


NETWORKS = Step(join_networks, "Bring its networks up to date", because="networks stay as long as their rows")
_BOOTABLE = (
    NETWORKS,
    Step(write_seed, "Write first-boot data", because=GOES_WITH_DISK),
    Step(define, "Define the machine", because=RECONCILED),
    Step(boot, "Start the machine", because=RECONCILED),
)
CREATE = (
    Step(prepare_image, "Prepare the image", because=IMAGE_STAYS),
    Step(make_disk, "Make the root disk", undo=unmake),
    Step(write_seed, "Write first-boot data", because=GOES_WITH_DISK),
    NETWORKS,
    Step(define, "Define the machine", undo=erase),
    Step(boot, "Start the machine", undo=pull_plug),
)
START = (Step(prepare_image, "Prepare the image", because=IMAGE_STAYS), Step(make_disk, "Check the root disk", because=RECONCILED), *_BOOTABLE)
REPLUG = (NETWORKS, Step(replug, "Plug its network cards in", because=RECONCILED))
STOP = (Step(shut_down, "Shut the guest down", because=RECONCILED),)
REBOOT = (*STOP, *_BOOTABLE)
RESIZE = (Step(change_size, "Change vCPU and memory", undo=change_size_back),)
REBUILD = (
    Step(prepare_new_image, "Prepare the image", because=IMAGE_STAYS),
    Step(pull_plug, "Stop the machine", because=RECONCILED),
    Step(drop_disk, "Delete the root disk", because="what was on it was given up"),
    Step(make_disk, "Make the root disk", because="the record says what it is made from"),
    *_BOOTABLE,
)
TERMINATE = (
    Step(pull_plug, "Stop the machine", because=RECONCILED),
    Step(erase, "Remove the machine", because="what is half gone is removed by the next try"),
    Step(drop_volumes, "Remove the volumes that go with it", because="what is half gone is removed by the next try"),
)


def launched(row: Any) -> None:
    """Columns of an instance that runs."""
    row.launch_time, row.stop_time, row.desired_power = now(), None, "running"


def stopped(row: Any) -> None:
    """Columns of an instance that was stopped."""
    row.stop_time = now()


def resized(row: Any) -> None:
    """Columns of an instance that has its new flavor."""
    row.flavor, row.resize_to = row.resize_to, None


def not_resized(row: Any) -> None:
    """Columns of an instance that keeps its flavor."""
    row.resize_to = None


def rebuilt(row: Any) -> None:
    """Columns of an instance that was made anew."""
    row.rebuild_to = None
    launched(row)


def not_rebuilt(row: Any) -> None:
    """Columns of an instance that was not made anew: it keeps its image unless the old disk is gone."""
    row.rebuild_to = None


def terminated(row: Any) -> None:
    """Columns of an instance that is gone."""
    row.termination_time = now()
