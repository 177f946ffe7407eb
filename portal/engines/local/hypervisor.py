"""The connection to libvirt: one event loop per process, errors in words for users, and the machines that are ours.

Imported only when the engine is first used: the binding to libvirt is not on every machine.
"""

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu

from portal.engines.local.definition import NAMESPACE, installation_of, interface, taps_of
from portal.engines.local.firewall import keep_off_loopback
from portal.engines.local.guest_user import UNPRIVILEGED_USER, guest_group, guest_user
from portal.engines.local.network.names import Installation
from portal.engines.local.network.namespaces import inside
from portal.engines.local.paths import LocalPaths
from portal.engines.local.secrets import Secrets
from portal.engines.local.traffic import RECEIVED, SENT, switch
from portal.engines.ports import EngineError, EngineRefused, EngineUnavailable, MachineInterface, MachineState

log = logging.getLogger("portal.engines.local")

GONE = {libvirt.VIR_ERR_NO_DOMAIN}
OFF = {libvirt.VIR_ERR_OPERATION_INVALID, *GONE}
AWAY = {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_SUPPORT}
HOPELESS = {libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_XML_DETAIL, libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_NO_MEMORY}
FULL = ("Cannot allocate memory", "No space left")
HOST_PATH = re.compile(r"(?<![\w.])/[^\s'\",:;)]+")
UP = {libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED, libvirt.VIR_DOMAIN_SHUTDOWN}
HALTED = {libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED}
UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
EVENTS = (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2)
NOW_AND_LATER = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
STATISTICS = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)


@contextmanager
def in_words(complaint: str) -> Iterator[None]:
    """Turn an error of libvirt's into one for users; the log keeps its own words, which name paths of the host."""
    try:
        yield
    except libvirt.libvirtError as error:
        text = error.get_error_message() or ""
        log.warning("%s: %s (libvirt code %s)", complaint, text, error.get_error_code())
        told = f"{complaint}: {HOST_PATH.sub('…', text)}"
        if error.get_error_code() in AWAY:
            raise EngineUnavailable(told) from error
        if error.get_error_code() in HOPELESS or any(sign in text for sign in FULL):
            raise EngineRefused(told) from error
        raise EngineError(told) from error


class _EventLoop:
    """Runs libvirt's event loop in a thread of its own, from the first connection of this process to its end."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start it unless it runs; must come before any connection."""
        with self._guard:
            if self._thread is not None:
                return
            # Errors are raised; without a handler libvirt would print them as well.
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            self._thread = threading.Thread(target=self._run, daemon=True, name="libvirt-events")
            self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as error:
                log.warning("libvirt's event loop stumbled: %s", error.get_error_message())


_EVENTS = _EventLoop()


class Hypervisor:
    """One open connection."""

    def __init__(self, paths: LocalPaths, uri: str) -> None:
        """Connect to `uri`; empty means the driver embedded in this process. Raises EngineUnavailable."""
        self._installation = paths.installation
        self._fabric = Installation(paths.installation).fabric
        self._is_embedded = not uri
        _EVENTS.start()
        # A libvirt of the host's own has its own settings.
        self.guests_run_as = "" if uri else _configure(paths)
        if not uri:
            uri = f"qemu:///embed?root={quote(str(paths.short_root() / 'libvirt'))}"
        with _as_unavailable():
            self._connection = libvirt.open(uri)
        self._secrets = Secrets(self._connection, paths.short_root() / "libvirt" if self._is_embedded else None)
        self.no_network_because = ""
        self.keep_guests_apart()
        self._changes = 0
        self._changed = threading.Condition()
        with _as_unavailable():
            register = self._connection.domainEventRegisterAny
            self._registrations = [register(None, event, self._on_change, None) for event in EVENTS]

    def _on_change(self, *_event: object) -> None:
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def keep_guests_apart(self) -> None:
        """Set the firewall's rule again, as often as the host is looked at: whoever reloads the host's firewall throws it away."""
        self.no_network_because = keep_off_loopback(UNPRIVILEGED_USER)

    def count_traffic(self, *, on: bool) -> None:
        """Let every running machine of ours note its packets, or no longer."""
        for machine_id, domain in self.all().items():
            try:
                for name in (SENT, RECEIVED) if domain.isActive() else ():
                    # A machine without a network answers that there is nothing to switch.
                    libvirt_qemu.qemuMonitorCommand(domain, switch(name, on=on), 0)
            except libvirt.libvirtError as error:
                log.warning("%s: its packets cannot be counted: %s", machine_id, error.get_error_message())

    def is_alive(self) -> bool:
        """Whether the connection still works; the embedded one always does."""
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    def version(self) -> str:
        """Which libvirt and QEMU are at work."""
        with in_words("The hypervisor does not answer"):
            return f"libvirt {_dotted(self._connection.getLibVersion())}, QEMU {_dotted(self._connection.getVersion())}"

    def close(self) -> None:
        """Let go of the connection; machines go on running."""
        try:
            for registration in self._registrations:
                self._connection.domainEventDeregisterAny(registration)
            self._connection.close()
        except libvirt.libvirtError as error:
            log.warning("libvirt's connection did not close well: %s", error.get_error_message())

    def find(self, machine_id: str) -> Any | None:
        """The domain of a machine of ours, None if there is none. Raises EngineRefused if its name is taken by somebody else's."""
        try:
            domain = self._connection.lookupByName(machine_id)
        except libvirt.libvirtError as error:
            if error.get_error_code() in GONE:
                return None
            with in_words("The hypervisor does not answer"):
                raise
        if not self._is_ours(domain):
            raise EngineRefused("Another program has a machine of this name on this hypervisor.")
        return domain

    def _is_ours(self, domain: Any) -> bool:
        try:
            return installation_of(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0)) == self._installation
        except libvirt.libvirtError:
            return False

    def all(self) -> dict[str, Any]:
        """Every domain of ours."""
        with in_words("Machines cannot be listed"):
            domains = self._connection.listAllDomains(0)
        return {domain.name(): domain for domain in domains if self._is_ours(domain)}

    def unlocked(self, keys: Mapping[str, bytes]) -> AbstractContextManager[None]:
        """Let libvirt have secrets until the block ends, by what it calls them. Raises EngineRefused where this host cannot."""
        return self._secrets.unlocked(keys)

    def define(self, xml: str) -> None:
        """Make a domain, or change what is kept of it for its next start."""
        with in_words("The machine cannot be defined"):
            self._connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)

    def undefine(self, domain: Any) -> None:
        """Forget a domain that is off; one that is gone is forgotten."""
        with in_words("The machine cannot be removed"):
            _unless(GONE, lambda: domain.undefineFlags(UNDEFINE))

    def start(self, domain: Any) -> None:
        """Boot a domain; one that runs goes on."""
        with in_words("The machine does not start"), self._within_reach(self.taps(domain)):
            if not domain.isActive():
                domain.create()

    @contextmanager
    def _within_reach(self, taps: Collection[str]) -> Iterator[None]:
        """Be where the taps are: the embedded driver opens them, and starts QEMU, in the thread that calls it. Raises EngineRefused."""
        if taps and not self._is_embedded:
            raise EngineRefused("Machines in networks need the libvirt that is embedded in the portal. Start it without LIBVIRT_URI.")
        with inside(self._fabric) if taps else nullcontext():
            yield

    def taps(self, domain: Any) -> dict[str, str]:
        """The taps of a domain as it is now, with their cards' MACs."""
        with in_words("The machine's network cards are not known"):
            return taps_of(domain.XMLDesc(0))

    def plug(self, domain: Any, card: MachineInterface) -> None:
        """Give a running domain a network card, and keep it for its next start."""
        with in_words("The network interface cannot be attached"), self._within_reach([card.tap]):
            domain.attachDeviceFlags(ET.tostring(interface(card), encoding="unicode"), NOW_AND_LATER)

    def unplug(self, domain: Any, card: MachineInterface) -> None:
        """Take a network card away from a running domain. Raises EngineError while its guest holds on to it."""
        with in_words("The network interface cannot be detached"):
            domain.detachDeviceFlags(ET.tostring(interface(card), encoding="unicode"), NOW_AND_LATER)
        if card.tap in self.taps(domain):
            raise EngineError("The guest has not let go of the network interface yet.")

    def has_user_network(self, domain: Any) -> bool:
        """Whether a domain's QEMU makes its connections itself."""
        with in_words("The machine's network cards are not known"):
            return "<interface type='user'>" in domain.XMLDesc(0)

    def resume(self, domain: Any) -> None:
        """Let a paused domain go on."""
        with in_words("The machine does not go on"):
            domain.resume()

    def power_button(self, domain: Any) -> None:
        """Ask the guest to shut down; one that is off already has done so."""
        with in_words("The guest cannot be asked to shut down"):
            _unless(OFF, lambda: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))

    def pull_plug(self, domain: Any) -> None:
        """End a domain at once; one that is off is off."""
        with in_words("The machine cannot be stopped"):
            _unless(OFF, domain.destroy)

    def wait_until_off(self, domain: Any, timeout_s: float) -> bool:
        """Wait for the guest to end; False if it still runs after that long."""
        return self.wait_until(lambda: not self.is_active(domain), timeout_s)

    def wait_until(self, is_so: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for something that comes with an event of a domain's; False if it is not so after that long."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            with self._changed:
                seen = self._changes
            if is_so():
                return True
            left_s = deadline_s - time.monotonic()
            with self._changed:
                # Whatever changed between the look at the counter and here is not waited for.
                if left_s > 0 and self._changes == seen:
                    self._changed.wait(left_s)
            if left_s <= 0:
                return False

    def is_active(self, domain: Any) -> bool:
        """Whether a domain runs or is paused; one that is gone does neither."""
        with in_words("The machine's state is not known"):
            return bool(_unless(GONE, domain.isActive))

    def state(self, domain: Any) -> tuple[MachineState, bool]:
        """State of a domain, and whether the guest ended by itself."""
        with in_words("The machine's state is not known"):
            found = _unless(GONE, domain.state)
        if found is None:
            return MachineState.ABSENT, False
        state, reason = found
        if state in UP:
            return MachineState.RUNNING, False
        if state in HALTED:
            return MachineState.PAUSED, False
        if state == libvirt.VIR_DOMAIN_CRASHED:
            return MachineState.CRASHED, False
        return MachineState.STOPPED, reason == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN

    def size(self, domain: Any) -> tuple[int, int]:
        """VCPU and MiB of memory that a domain has now."""
        with in_words("The machine's size is not known"):
            _, memory_kib, _, vcpus, _ = domain.info()
            return int(vcpus), int(memory_kib) // 1024

    def statistics(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Counters of every running domain of ours, as libvirt names them, and its description."""
        with in_words("Machines cannot be measured"):
            found = self._connection.getAllDomainStats(STATISTICS, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_RUNNING)
            return {domain.name(): (counters, domain.XMLDesc(0)) for domain, counters in found if self._is_ours(domain)}


def _configure(paths: LocalPaths) -> str:
    """Write the embedded driver's settings; gives the user that guests run as, empty for the one who runs this process."""
    lines = ['stdio_handler = "file"', 'security_driver = "none"', "cgroup_controllers = []", "remember_owner = 0", "auto_dump_bypass_cache = 0"]
    user = guest_user(paths.run)
    if user:
        lines += [f'user = "{user}"', f'group = "{guest_group(user)}"']
        # QEMU makes the display's socket itself.
        shutil.chown(paths.run, user, user)
    folder = paths.libvirt / "etc"
    folder.mkdir(exist_ok=True)
    (folder / "qemu.conf").write_text("\n".join(lines) + "\n")
    return user


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """Whatever goes wrong while connecting: there is no hypervisor."""
    try:
        yield
    except libvirt.libvirtError as error:
        log.warning("no connection to libvirt: %s", error.get_error_message())
        raise EngineUnavailable(f"libvirt does not answer: {HOST_PATH.sub('…', error.get_error_message() or '')}") from error


def _unless(codes: set[int], call: Callable[[], Any]) -> Any:
    """Call, and take these errors for nothing to do."""
    try:
        return call()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in codes:
            raise
        return None
