"""What this host must have before machines can run on it."""

import importlib.util
import shutil
import sys

PROGRAMS = ("qemu-system-x86_64", "qemu-img", "prlimit")
PACKAGES = "qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu libvirt-dev gcc"
REMEDY = f"Run `make run` as root once, or: apt-get install {PACKAGES} && make setup"
REMEDY_BROKEN = "See the worker's log and engine/libvirt.log under DATA_DIR; give the worker's user the right to write there."


def missing_piece() -> str:
    """The first thing that is not there, as a sentence; empty if all is."""
    if sys.platform != "linux":
        return "Virtual machines of this engine need Linux."
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"{program} is not installed."
    if importlib.util.find_spec("libvirt") is None:
        return "Python's binding to libvirt (libvirt-python) is not installed."
    return ""
