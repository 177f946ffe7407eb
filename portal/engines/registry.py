"""From settings to drivers. Drivers are imported only where they are used: libvirt's binding is not on every machine."""

from portal.engines.ports import Capability, Engines, EngineUnavailable, HostCapacity
from portal.settings import ComputeDriver, Settings

COMPUTE = "compute"
SWITCHED_OFF = Capability(
    COMPUTE, available=False, detail="none", reason="This installation runs no instances (ENGINE_COMPUTE=none).",
    remedy="Start the portal with ENGINE_COMPUTE=local on a host with QEMU.",
)  # fmt: skip


def open_engines(settings: Settings, *, owner: bool) -> Engines:
    """The drivers of this installation. A worker owns them; the web process gets the consoles only, which need no privilege."""
    if settings.engine_compute is ComputeDriver.FAKE:
        from portal.engines.fake import FakeCompute

        fake = FakeCompute(settings.data_dir / "fake")
        return Engines(compute=fake if owner else None, console=fake)
    if settings.engine_compute is ComputeDriver.LOCAL:
        from portal.engines.local import open_compute, open_console

        return Engines(compute=open_compute(settings) if owner else None, console=open_console(settings))
    return Engines()


def compute_status(engines: Engines) -> tuple[Capability, HostCapacity | None]:
    """What the compute engine can do now and how large its host is; never raises."""
    if engines.compute is None:
        return SWITCHED_OFF, None
    found = engines.compute.capability()
    if not found.available:
        return found, None
    try:
        return found, engines.compute.capacity()
    except EngineUnavailable as error:
        return Capability(found.name, available=False, detail=found.detail, reason=error.message), None
