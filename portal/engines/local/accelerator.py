"""Whether KVM really runs guests here. That /dev/kvm is there proves nothing: on some hosts everything says yes and guests hang.

Two things must happen: a boot sector of a few bytes leaves through QEMU's debug exit, and a stock kernel prints on its serial port.
"""

import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from portal.engines.local.tiny_image import HOST, newest_kernel
from portal.engines.ports import EngineUnavailable

QEMU = "qemu-system-x86_64"
DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# mov al, 0x10; out 0xf4, al; hlt; jmp back to hlt
BOOT_SECTOR = bytes.fromhex("b010e6f4f4ebfd").ljust(510, b"\0") + b"\x55\xaa"
LEFT_THROUGH_DEBUG_EXIT = (0x10 << 1) | 1
SECTOR_TIMEOUT_S = 2.0
KERNEL_TIMEOUT_S = 6.0
# A kernel without a root disk says so after all its own code has run.
KERNEL_CAME_FAR = (b"VFS: ", b"Kernel panic", b"Run /init")
MACHINE = ("-accel", "kvm", "-cpu", "host", "-nodefaults", "-display", "none", "-no-reboot", "-no-user-config")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """How guest code is run, `kvm` or `tcg`, and why."""

    name: str
    why: str


def choose(setting: str, cache: Path, kernels: Sequence[Path] = HOST) -> Accelerator:
    """Take what the setting says, or what was proven since this host was booted."""
    if setting != "auto":
        return Accelerator(setting, "chosen by QEMU_ACCEL")
    boot_id = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    remembered = _remembered(cache, boot_id)
    if remembered is not None:
        return remembered
    why_not = why_not_kvm(kernels=kernels)
    found = Accelerator("tcg", why_not) if why_not else Accelerator("kvm", "KVM was tried and works")
    fresh = cache.with_suffix(".new")
    fresh.write_text(json.dumps({"boot_id": boot_id, "found": asdict(found)}))
    fresh.replace(cache)
    return found


def _remembered(cache: Path, boot_id: str) -> Accelerator | None:
    try:
        note = json.loads(cache.read_text())
        return Accelerator(**note["found"]) if note["boot_id"] == boot_id else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def why_not_kvm(device: Path = DEVICE, *, kernels: Sequence[Path] = HOST) -> str:
    """Why KVM cannot be used; empty if it works."""
    if not device.exists():
        return "this host offers no KVM"
    if not os.access(device, os.R_OK | os.W_OK):
        return "this user may not use /dev/kvm (usermod -aG kvm)"
    if not _boots_sector():
        return "KVM is there but does not run even a guest of seven bytes"
    try:
        kernel = newest_kernel(kernels)
    except EngineUnavailable:
        return "there is no kernel to try KVM with"
    return "" if _boots_kernel(kernel) else "KVM is there but a stock kernel does not come up in it"


def _boots_sector() -> bool:
    with tempfile.NamedTemporaryFile(prefix="atonix-kvm-") as sector:
        sector.write(BOOT_SECTOR)
        sector.flush()
        command = [
            shutil.which(QEMU) or QEMU, *MACHINE, "-m", "32", "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
            "-drive", f"file={sector.name},format=raw,if=ide",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=SECTOR_TIMEOUT_S, check=False)
        except (subprocess.TimeoutExpired, OSError):
            return False
    return done.returncode == LEFT_THROUGH_DEBUG_EXIT


def _boots_kernel(kernel: Path) -> bool:
    command = [
        shutil.which(QEMU) or QEMU, *MACHINE, "-machine", "q35", "-m", "128", "-serial", "stdio", "-kernel", str(kernel),
        "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1",
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            return _printed(process, time.monotonic() + KERNEL_TIMEOUT_S)
        finally:
            process.kill()


def _printed(process: subprocess.Popen[bytes], deadline_s: float) -> bool:
    if process.stdout is None:
        return False
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline_s - time.monotonic())):
            heard = os.read(process.stdout.fileno(), 65_536)
            said += heard
            if any(sign in said for sign in KERNEL_CAME_FAR):
                return True
            if not heard:
                return False
    return False
