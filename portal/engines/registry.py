"""From settings to drivers. Drivers are imported only where they are used: libvirt's binding is not on every machine."""

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from portal.engines.network_ports import NetworkEngine
from portal.engines.object_engine_ports import ObjectEngine
from portal.engines.object_ports import BlobStore
from portal.engines.ports import Capability, EngineError, Engines, EngineUnavailable, HostCapacity
from portal.engines.volume_ports import PoolRoom
from portal.settings import ComputeDriver, NetworkDriver, ObjectsAdmin, ObjectsDriver, Settings

COMPUTE, NETWORK, VOLUMES, OBJECTS = "compute", "network", "volumes", "objects"
SWITCHED_OFF = Capability(
    COMPUTE, available=False, detail="none", reason="This installation runs no instances (ENGINE_COMPUTE=none).",
    remedy="Start the portal with ENGINE_COMPUTE=local on a host with QEMU.",
)  # fmt: skip

NO_VOLUMES = Capability(
    VOLUMES, available=False, detail="none", reason="This installation keeps no volumes (ENGINE_COMPUTE=none).",
    remedy="Start the portal with ENGINE_COMPUTE=local on a host with QEMU.",
)  # fmt: skip

NO_NETWORKS = Capability(
    NETWORK, available=False, detail="none", reason="This installation makes no networks (ENGINE_NETWORK=none).",
    remedy="Start the portal with ENGINE_NETWORK=local on a host with nftables and dnsmasq.",
)  # fmt: skip


def open_engines(settings: Settings, *, owner: bool) -> Engines:
    """The drivers of this installation. A worker owns them; the web process gets consoles and objects, which need no privilege."""
    return replace(_open_engines(settings, owner=owner), objects=open_objects(settings))


def claim_engines(settings: Settings) -> bool:
    """Try to become the one worker that owns the engines of this host; False while another one does, True where nothing is driven here."""
    if settings.engine_compute is not ComputeDriver.LOCAL and settings.network_driver() is not NetworkDriver.LOCAL:
        return True
    from portal.engines.local.ownership import claim_host

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    # Of this host: the directory may be one that several share.
    return claim_host(settings.data_dir / f"worker-{socket.gethostname()}.lock")


def open_objects(settings: Settings) -> ObjectEngine | None:
    """The external engine for objects; None where the portal keeps them itself."""
    if settings.engine_objects is not ObjectsDriver.S3:
        return None
    from portal.engines.s3.engine import S3Engine

    users = settings.s3_engine_prefix if settings.s3_engine_admin is ObjectsAdmin.RGW else ""
    return S3Engine(settings.s3_engine_endpoint.rstrip("/"), settings.s3_engine_region, Path(settings.s3_engine_key_file), users=users)


def objects_status(engines: Engines) -> Capability:
    """Whether objects can be kept now; never raises."""
    return engines.objects.capability() if engines.objects is not None else Capability(OBJECTS, available=True, detail="local")


def _open_engines(settings: Settings, *, owner: bool) -> Engines:
    blobs = open_blobs(settings)
    if settings.engine_compute is ComputeDriver.FAKE:
        from portal.engines.fake import FakeCompute
        from portal.engines.fake_volumes import FakeVolumes

        fake = FakeCompute(settings.data_dir / "fake")
        if not owner:
            return Engines(console=fake, blobs=blobs)
        return Engines(
            compute=fake,
            console=fake,
            network=_open_network(settings),
            volumes=FakeVolumes(settings.data_dir / "fake", settings.pools()),
            blobs=blobs,
        )
    if settings.engine_compute is ComputeDriver.LOCAL:
        from portal.engines.local import open_compute, open_console, open_volumes

        if not owner:
            return Engines(console=open_console(settings), blobs=blobs)
        compute = open_compute(settings)
        return Engines(compute=compute, console=open_console(settings), network=_open_network(settings), volumes=open_volumes(compute), blobs=blobs)
    return Engines(network=_open_network(settings) if owner else None, blobs=blobs)


def open_blobs(settings: Settings) -> BlobStore:
    """Where the bytes of objects are; every process that serves them may open it."""
    from portal.engines.blobs import LocalBlobs

    return LocalBlobs(settings.data_dir / "objects", settings.tiers(), reserved_bytes=settings.object_reserved_mib << 20)


def _open_network(settings: Settings) -> NetworkEngine | None:
    driver = settings.network_driver()
    if driver is NetworkDriver.FAKE:
        from portal.engines.fake_network import FakeNetwork

        return FakeNetwork(settings.data_dir / "fake-network", external_cidr=settings.network_external_cidr)
    if driver is NetworkDriver.LOCAL:
        from portal.engines.local import open_network

        return open_network(settings)
    return None


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


def volumes_status(engines: Engines) -> tuple[Capability, Mapping[str, PoolRoom]]:
    """What the engine for volumes can do now, and what its pools have; never raises."""
    if engines.volumes is None:
        return NO_VOLUMES, {}
    found = engines.volumes.capability()
    try:
        return found, engines.volumes.pools() if found.available else {}
    except EngineError as error:
        return Capability(found.name, available=False, detail=found.detail, reason=error.message), {}


def network_status(engines: Engines) -> Capability:
    """What the network engine can do now; never raises."""
    if engines.network is None:
        return NO_NETWORKS
    return engines.network.capability()
