"""A machine as libvirt is told about it: XML that is built from elements, never from text, so that no user's word becomes markup."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from portal.engines.local import traffic
from portal.engines.local.image_store import StoredImage
from portal.engines.local.paths import MachineFiles
from portal.engines.local.volume_store import Below
from portal.engines.ports import MachineInterface, MachineSpec, MachineVolume, mac_address

NAMESPACE = "urn:atonix:portal:machine:1"
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
# Devices that are there from the start, and room for what is plugged in later: on q35 each takes a port of its own.
DEVICES = 5
SPARE_PORTS = 16
ROOT_DISK, SEED_DISK = "vda", "vdb"
# How the serial numbers of volumes begin: their ids.
VOLUME_ID = "vol-"
VOLUME_TARGETS = [f"vd{letter}" for letter in "cdefghijklmnopqrstuvwxyz"]
ET.register_namespace("atonix", NAMESPACE)
# libvirt knows this namespace by this prefix only.
ET.register_namespace("qemu", QEMU_NAMESPACE)
KERNEL_ARGUMENTS = "console=tty0 console=ttyS0 net.ifnames=0 random.trust_cpu=on panic=10"
SERIAL_LENGTH = 20


@dataclass(frozen=True, slots=True)
class Host:
    """What definitions say about this host: who it is, how guest code is run, and where sockets have short names."""

    installation: str
    accelerator: str
    run: Path
    has_network: bool = True


@dataclass(frozen=True, slots=True)
class MachineDisk:
    """A volume that a machine has, and the file that takes its writes; of an encrypted one also libvirt's secret, and what it is built on."""

    volume: MachineVolume
    file: Path
    secret: str = ""
    below: Sequence[Below] = ()


def definition(spec: MachineSpec, image: StoredImage, volumes: Sequence[MachineDisk], files: MachineFiles, host: Host) -> str:
    """Describe a machine with its disks, the root disk first, in XML."""
    root = ET.Element("domain", type="kvm" if host.accelerator == "kvm" else "qemu")
    _text(root, "name", spec.machine_id)
    _text(root, "uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, f"{host.installation}/{spec.machine_id}")))
    _text(root, "memory", str(spec.memory_mib), unit="MiB")
    _text(root, "vcpu", str(spec.vcpus))
    _boot(root, image)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    ET.SubElement(root, "cpu", mode="host-passthrough" if host.accelerator == "kvm" else "maximum")
    ET.SubElement(root, "clock", offset="utc")
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(root, event, action)
    _devices(root, spec, volumes, files, host)
    extra = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
    for argument in traffic.arguments(files, host.run) if has_user_network(spec, host) else ():
        ET.SubElement(extra, f"{{{QEMU_NAMESPACE}}}arg", value=argument)
    ET.SubElement(ET.SubElement(root, "metadata"), f"{{{NAMESPACE}}}mark", installation=host.installation)
    return ET.tostring(root, encoding="unicode")


def installation_of(metadata: str) -> str:
    """The installation that a definition carries the mark of."""
    return ET.fromstring(metadata).get("installation", "")  # noqa: S314  # nosec B314 - libvirt wrote it


def _boot(root: ET.Element, image: StoredImage) -> None:
    boot = ET.SubElement(root, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine="q35")
    if image.kernel is None:
        ET.SubElement(boot, "boot", dev="hd")
        return
    _text(boot, "kernel", str(image.kernel))
    _text(boot, "initrd", str(image.initrd))
    _text(boot, "cmdline", KERNEL_ARGUMENTS)


def _devices(root: ET.Element, spec: MachineSpec, volumes: Sequence[MachineDisk], files: MachineFiles, host: Host) -> None:
    devices = ET.SubElement(root, "devices")
    first, *others = volumes
    devices.append(volume_disk(first, ROOT_DISK))
    devices.append(_disk(files.seed, "raw", SEED_DISK, "seed", is_readonly=True))
    devices.extend(volume_disk(volume, target) for volume, target in zip(others, VOLUME_TARGETS, strict=False))
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="pci", model="pcie-root")
    for _ in range(DEVICES + SPARE_PORTS + max(0, len(spec.interfaces) - 1)):
        ET.SubElement(devices, "controller", type="pci", model="pcie-root-port")
    for each in spec.interfaces:
        devices.append(interface(each))
    if has_user_network(spec, host):
        network = ET.SubElement(devices, "interface", type="user")
        ET.SubElement(network, "mac", address=mac_address(spec.machine_id))
        ET.SubElement(network, "model", type="virtio")
    serial = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(serial, "source", mode="bind", path=str(host.run / files.serial.name))
    # Appending: what the portal cuts off at the front stays cut off.
    ET.SubElement(serial, "log", file=str(files.log), append="on")
    ET.SubElement(serial, "target", port="0")
    display = ET.SubElement(devices, "graphics", type="vnc")
    ET.SubElement(display, "listen", type="socket", socket=str(host.run / files.display.name))
    ET.SubElement(ET.SubElement(devices, "video"), "model", type="vga", vram="16384", heads="1", primary="yes")
    ET.SubElement(ET.SubElement(devices, "memballoon", model="virtio"), "stats", period="5")
    _text(ET.SubElement(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "panic", model="isa")


def _disk(path: Path, kind: str, target: str, serial: str, *, is_readonly: bool = False) -> ET.Element:
    disk = ET.Element("disk", type="file", device="disk")
    ET.SubElement(disk, "driver", {"name": "qemu", "type": kind} | ({} if is_readonly else {"discard": "unmap"}))
    ET.SubElement(disk, "source", file=str(path))
    ET.SubElement(disk, "target", dev=target, bus="virtio")
    # Guests do not heed the target; by this they name the disk in /dev/disk/by-id.
    _text(disk, "serial", serial[:SERIAL_LENGTH])
    if is_readonly:
        ET.SubElement(disk, "readonly")
    return disk


def volume_disk(disk: MachineDisk, target: str) -> ET.Element:
    """A volume as a disk, with its limits; its serial number is the volume's id."""
    element = _disk(disk.file, "qcow2", target, disk.volume.volume_id)
    if disk.secret:
        _encrypt(element, disk)
    limits = limits_of(disk.volume)
    if any(limits.values()):
        tune = ET.SubElement(element, "iotune")
        for name, value in limits.items():
            if value:
                _text(tune, name, str(value))
    return element


def _encrypt(element: ET.Element, disk: MachineDisk) -> None:
    """Say which secret opens a disk and what it is built on: libvirt finds by itself what is not encrypted only."""
    source = element.find("source")
    if source is None:
        return
    _locked(source, disk.secret)
    upper, place = element, [*element].index(source) + 1
    for each in disk.below:
        lower = ET.Element("backingStore", type="file")
        upper.insert(place, lower)
        ET.SubElement(lower, "format", type=each.format.value)
        source = ET.SubElement(lower, "source", file=str(each.file))
        if each.is_encrypted:
            _locked(source, disk.secret)
        upper, place = lower, 2
    upper.insert(place, ET.Element("backingStore"))


def _locked(source: ET.Element, secret: str) -> None:
    ET.SubElement(ET.SubElement(source, "encryption", format="luks"), "secret", type="passphrase", uuid=secret)


def snapshot_disk(parent: ET.Element, target: str, file: str, secret: str) -> None:
    """A disk of which a snapshot is taken: the file that takes its writes from then on."""
    one = ET.SubElement(parent, "disk", name=target, snapshot="external", type="file")
    ET.SubElement(one, "driver", type="qcow2")
    source = ET.SubElement(one, "source", file=file)
    if secret:
        _locked(source, secret)


def secret_of(volume_id: str) -> str:
    """What libvirt calls the secret that opens a volume."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, volume_id))


def limits_of(volume: MachineVolume) -> dict[str, int]:
    """The limits of a volume as libvirt names them; 0 is none."""
    return {"total_bytes_sec": volume.throughput_mib_s << 20, "total_iops_sec": volume.iops}


@dataclass(frozen=True, slots=True)
class PluggedDisk:
    """A disk that a domain has now: its target, the serial number that the guest sees, and its file."""

    target: str
    serial: str
    file: str
    xml: str


def disks_of(xml: str) -> list[PluggedDisk]:
    """The disks of a domain, as libvirt describes it."""
    found = []
    for element in ET.fromstring(xml).iterfind("./devices/disk"):  # noqa: S314  # nosec B314 - libvirt wrote it
        target, source = element.find("target"), element.find("source")
        if target is not None and source is not None:
            serial = element.findtext("serial") or ""
            found.append(PluggedDisk(target.get("dev", ""), serial, source.get("file", ""), ET.tostring(element, encoding="unicode")))
    return found


def chain_of(disk_xml: str) -> list[tuple[str, str]]:
    """What a disk of a running domain is built on, as libvirt describes it: the number and the file of each, the nearest first."""
    found, element = [], ET.fromstring(disk_xml).find("backingStore")  # noqa: S314  # nosec B314 - libvirt wrote it
    while element is not None:
        source = element.find("source")
        if source is not None:
            found.append((element.get("index", ""), source.get("file", "")))
        element = element.find("backingStore")
    return found


def with_files(xml: str, files: Mapping[str, MachineDisk]) -> str:
    """A domain as libvirt describes it, with other files for its disks; what those are built on is in their headers, or said of encrypted ones."""
    root = ET.fromstring(xml)  # noqa: S314  # nosec B314 - libvirt wrote it
    for disk in root.iterfind("./devices/disk"):
        source, chain = disk.find("source"), disk.find("backingStore")
        if source is not None and (file := source.get("file", "")) in files:
            moved = files[file]
            if chain is not None:
                disk.remove(chain)
            for child in [*source]:
                source.remove(child)
            source.set("file", str(moved.file))
            if moved.secret:
                _encrypt(disk, moved)
    return ET.tostring(root, encoding="unicode")


def has_user_network(spec: MachineSpec, host: Host) -> bool:
    """Whether QEMU itself makes the machine's connections: where it has no place in a network."""
    return host.has_network and not spec.interfaces


def interface(card: MachineInterface) -> ET.Element:
    """A network card on a tap that the network engine has made; libvirt only opens it."""
    element = ET.Element("interface", type="ethernet")
    ET.SubElement(element, "mac", address=card.mac)
    ET.SubElement(element, "target", dev=card.tap, managed="no")
    ET.SubElement(element, "model", type="virtio")
    return element


def taps_of(xml: str) -> dict[str, str]:
    """The taps of a domain with their cards' MACs, as libvirt describes it."""
    found = ET.fromstring(xml).iterfind("./devices/interface[@type='ethernet']")  # noqa: S314  # nosec B314 - libvirt wrote it
    pairs = ((card.find("target"), card.find("mac")) for card in found)
    return {target.get("dev", ""): mac.get("address", "") for target, mac in pairs if target is not None and mac is not None}


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
