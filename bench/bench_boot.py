"""What the portal adds to a boot: from the click to a machine that runs, and to a guest that is ready, beside QEMU started by hand.

`python -m bench.bench_boot`. Both take the same image, memory and vCPU, in turns within one run; by hand there is no libvirt, no database and no
worker, only an overlay made by qemu-img, a seed disk and one QEMU.
"""

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker

from portal.catalogue import build_registry
from portal.compute.instances import Instance, instance_create, instance_terminate
from portal.engines.local.console import LocalConsole
from portal.engines.local.definition import KERNEL_ARGUMENTS
from portal.engines.local.seed import write_seed
from portal.engines.ports import MachineSpec
from portal.kernel.db import open_database
from portal.kernel.operations import run
from tests.support.databases import fill, settings_for
from tests.support.hosts import remove_machines, why_no_local_host
from tests.support.people import People
from tests.support.processes import portal_process
from tests.support.servers import until

ROUNDS = 5
TINY, FLAVOR = "atonix-tiny", "t3-micro"
MEMORY_MIB, DISK_GIB = 1024, 8
READY = b"READY"
WAIT_S = 120
EVERY_S = 0.005


@dataclass(frozen=True)
class Times:
    """Seconds from the beginning to guest code running, and to the guest's word that it is ready."""

    running_s: float
    ready_s: float


def says_ready(read: Callable[[], bytes]) -> None:
    until(lambda: READY in read(), within_s=WAIT_S, what="the guest is ready", every_s=EVERY_S)


def by_hand(image: Path, accelerator: str, folder: Path) -> Times:
    """One boot without the portal."""
    seed, disk, console = folder / "seed.iso", folder / "disk.qcow2", folder / "console.log"
    started = time.monotonic()
    write_seed(seed, MachineSpec("i-byhand00", "by-hand", 1, MEMORY_MIB, DISK_GIB, TINY))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image / "disk.qcow2", disk, f"{DISK_GIB}G"], check=True)
    command = [
        "qemu-system-x86_64", "-machine", f"q35,accel={accelerator}", "-cpu", "host" if accelerator == "kvm" else "max", "-m", str(MEMORY_MIB),
        "-smp", "1", "-nodefaults", "-no-user-config", "-vga", "std", "-display", f"vnc=unix:{folder / 'display'}", "-kernel", image / "vmlinuz",
        "-initrd", image / "initrd.img", "-append", KERNEL_ARGUMENTS, "-drive", f"file={disk},if=virtio", "-drive",
        f"file={seed},if=virtio,format=raw,readonly=on", "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-serial", f"file:{console}",
        "-qmp", "stdio",
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            until_running(process)
            running_s = time.monotonic() - started
            says_ready(console.read_bytes)
            return Times(running_s, time.monotonic() - started)
        finally:
            process.kill()
            for path in (seed, disk, console):
                path.unlink(missing_ok=True)


def until_running(process: subprocess.Popen[bytes]) -> None:
    """Ask QEMU's monitor until it says that guest code runs."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("QEMU has no monitor")
    json.loads(process.stdout.readline())
    for command in ("qmp_capabilities", "query-status"):
        process.stdin.write(json.dumps({"execute": command}).encode() + b"\n")
        process.stdin.flush()
        answer: dict[str, dict[str, object]] = {}
        while "return" not in answer:
            answer = json.loads(process.stdout.readline())
    if answer["return"].get("status") != "running":
        raise RuntimeError(f"QEMU says {answer}")


class Portal:
    """A worker with the real engine, and somebody who creates instances."""

    def __init__(self, people: People, sessions: sessionmaker[Session], data: Path) -> None:
        self._ctx = people.context(people.admin())
        self._sessions = sessions
        self._console = LocalConsole(data)

    def boot(self, name: str) -> Times:
        """One boot, from the operation to the state on the page; afterwards nothing of it is left."""
        started = time.monotonic()
        instance_id = run(self._ctx, instance_create, None, {"name": name, "flavor": FLAVOR, "image": TINY, "root_volume_size_gb": DISK_GIB}).row.id
        until(lambda: self._state(instance_id) == "running", within_s=WAIT_S, what="the instance runs", every_s=EVERY_S)
        running_s = time.monotonic() - started
        says_ready(lambda: self._console.log_tail(instance_id, max_bytes=1 << 20))
        ready_s = time.monotonic() - started
        run(self._ctx, instance_terminate, instance_id, {})
        until(lambda: self._state(instance_id) == "terminated", within_s=WAIT_S, what="the instance is gone", every_s=0.05)
        return Times(running_s, ready_s)

    def _state(self, instance_id: str) -> str:
        with self._sessions() as session:
            return session.get_one(Instance, instance_id).state


def measure(data: Path, folder: Path) -> tuple[list[Times], list[Times]]:
    """Boots by hand and through the portal, in turns."""
    url = f"sqlite:///{data / 'portal.db'}"
    fill(url, data)
    settings = settings_for(data, database_url=url, engine_compute="local", job_poll_ms=50, memory_reserved_mib=0)
    sessions = open_database(settings)
    people = People(sessions, settings, build_registry())
    try:
        with portal_process(settings, "worker"):
            current = data / "engine/images" / TINY / "current.json"
            until(current.exists, within_s=WAIT_S, what="the guest is built", every_s=0.1)
            image = current.parent / json.loads(current.read_text())["generation"]
            portal = Portal(people, sessions, data)
            # The first one finds libvirt still getting to know its QEMU.
            portal.boot("warm-up")
            accelerator = json.loads((data / "engine/accelerator.json").read_text())["found"]["name"]
            hand, portals = [], []
            for number in range(ROUNDS):
                hand.append(by_hand(image, accelerator, folder))
                portals.append(portal.boot(f"boot-{number}"))
            return hand, portals
    finally:
        people.close()
        sessions.kw["bind"].dispose()
        remove_machines(data)


def row(name: str, hand_s: Sequence[float], portal_s: Sequence[float]) -> None:
    """One line of the table, of medians."""
    by_hand_s, through_s = statistics.median(hand_s), statistics.median(portal_s)
    print(f"{name:<22}{by_hand_s:>10.2f}{through_s:>10.2f}{through_s - by_hand_s:>+14.2f}{through_s / by_hand_s:>10.2f}{max(portal_s):>10.2f}")


def main() -> None:
    """Print the table."""
    if why := why_no_local_host():
        raise SystemExit(f"bench_boot needs guests that run here: {why}")
    with tempfile.TemporaryDirectory() as data, tempfile.TemporaryDirectory() as folder:
        # Guests may run as another user, who must be able to pass.
        Path(data).chmod(0o711)
        hand, portals = measure(Path(data), Path(folder))
    print(f"{f'median of {ROUNDS}, seconds':<22}{'QEMU':>10}{'portal':>10}{'difference':>14}{'ratio':>10}{'most':>10}")
    row("create → running", [each.running_s for each in hand], [each.running_s for each in portals])
    row("create → guest ready", [each.ready_s for each in hand], [each.ready_s for each in portals])


if __name__ == "__main__":
    main()
