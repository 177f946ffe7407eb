"""From libvirt's bulk counters to measurements of machines."""

from collections.abc import Mapping
from typing import Any

from portal.engines.local.definition import ROOT_DISK, VOLUME_ID
from portal.engines.local.traffic import Traffic
from portal.engines.ports import MachineSample, VolumeSample

KIB = 1024


def sample(machine_id: str, taken_at_s: float, counters: Mapping[str, Any], moved: Traffic, serials: Mapping[str, str]) -> MachineSample:
    """One machine's measurement; what the guest has not told yet (memory, before its driver is up) is what QEMU uses.

    `serials` are those of its disks, by target.
    """
    vcpus = int(counters.get("vcpu.current", 1))
    disk = _block(counters, ROOT_DISK)
    total_kib = int(counters.get("balloon.current", 0))
    return MachineSample(
        machine_id=machine_id,
        taken_at_s=taken_at_s,
        cpu_time_ns=int(counters.get("cpu.time", 0)) or sum(int(counters.get(f"vcpu.{number}.time", 0)) for number in range(vcpus)),
        vcpus=vcpus,
        memory_total_bytes=total_kib * KIB,
        memory_used_bytes=min(total_kib, _used_kib(counters)) * KIB,
        disk_capacity_bytes=disk.get("capacity", 0),
        disk_allocated_bytes=disk.get("physical", 0),
        disk_read_bytes=disk.get("rd.bytes", 0),
        disk_write_bytes=disk.get("wr.bytes", 0),
        net_in_bytes=moved.received_bytes,
        net_out_bytes=moved.sent_bytes,
        volumes=[_volume(serial, _block(counters, target)) for target, serial in serials.items() if serial.startswith(VOLUME_ID)],
    )


def _volume(volume_id: str, block: Mapping[str, int]) -> VolumeSample:
    names = ("rd.reqs", "wr.reqs", "rd.bytes", "wr.bytes", "rd.times", "wr.times")
    return VolumeSample(volume_id, *(block.get(name, 0) for name in names))


def _used_kib(counters: Mapping[str, Any]) -> int:
    available, usable = counters.get("balloon.available"), counters.get("balloon.usable", counters.get("balloon.unused"))
    if available is not None and usable is not None:
        return max(0, int(available) - int(usable))
    return int(counters.get("balloon.rss", 0))


def _block(counters: Mapping[str, Any], target: str) -> dict[str, int]:
    for number in range(int(counters.get("block.count", 0))):
        if counters.get(f"block.{number}.name") == target:
            prefix = f"block.{number}."
            return {key.removeprefix(prefix): value for key, value in counters.items() if key.startswith(prefix) and isinstance(value, int)}
    return {}
