"""Engines of one Linux host: libvirt and QEMU, files on disk."""

from typing import TYPE_CHECKING

from portal.engines.local.compute import LocalCompute
from portal.engines.local.console import LocalConsole
from portal.engines.local.volumes import LocalVolumes
from portal.settings import Settings

if TYPE_CHECKING:
    from portal.engines.local.network.engine import LocalNetwork


def open_compute(settings: Settings) -> LocalCompute:
    """The compute engine of this host, as the settings say."""
    return LocalCompute(
        settings.data_dir, accelerator=settings.qemu_accel, libvirt_uri=settings.libvirt_uri, image_max_gib=settings.image_max_gib,
        pools=settings.pools(),
    )  # fmt: skip


def open_volumes(compute: LocalCompute) -> LocalVolumes:
    """The volumes of the host that these machines run on."""
    return LocalVolumes(compute.host)


def open_console(settings: Settings) -> LocalConsole:
    """The consoles of this host's machines; needs no privilege."""
    return LocalConsole(settings.data_dir)


def open_network(settings: Settings) -> "LocalNetwork":
    """The networks of this host, as the settings say."""
    # What speaks to the kernel takes a while to load, and only workers need it.
    from portal.engines.local.network.engine import LocalNetwork

    return LocalNetwork(
        settings.data_dir, external_cidr=settings.network_external_cidr, external_nat=settings.network_external_nat,
        is_embedded=not settings.libvirt_uri,
    )  # fmt: skip
