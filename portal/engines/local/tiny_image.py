"""Builds atonix-tiny, a guest of about ten megabytes, from the distribution's kernel, busybox and dropbear: no root, no mounts, no network.

`python -m portal.engines.local.tiny_image OUTDIR` writes vmlinuz, initrd.img and disk.qcow2. What is in the guest besides programs is in `guest/`.
"""

import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from portal.engines.ports import EngineRefused, EngineUnavailable

GUEST = Path(__file__).parent / "guest"
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_balloon", "virtio_rng", "ext4", "isofs", "evdev", "button")
INITRD_FOLDERS = ("bin", "lib", "proc", "sys", "dev", "root")
ROOT_FOLDERS = (
    "bin", "sbin", "dev", "etc/dropbear", "etc/udhcpc", "home", "mnt/seed", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin",
    "var/lib/atonix", "var/log",
)  # fmt: skip
PROGRAMS = {"dropbear": "usr/sbin", "dropbearkey": "usr/bin", "resize2fs": "usr/sbin"}
# Where kernels are looked for; set-up unpacks one elsewhere on machines that would boot it.
HOST = (Path("/"),)
DISK_MIB = 64
REMEDY = "apt-get install linux-image-cloud-amd64 busybox-static dropbear-bin e2fsprogs cpio kmod qemu-utils"
# Users other than root do not have these on their PATH.
SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"))
TIMEOUT_S = 120
KERNEL, INITRD, DISK = "vmlinuz", "initrd.img", "disk.qcow2"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the guest is made of on this host."""

    kernel: Path
    kernel_version: str
    busybox: Path
    programs: Sequence[Path]
    root: Path = Path("/")

    def fingerprint(self) -> str:
        """Say in a word what goes into the guest; another word means another guest."""
        digest = hashlib.sha256()
        for path in (self.kernel, self.busybox, *self.programs):
            found = path.stat()
            digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
        for path in sorted((Path(__file__), *(path for path in GUEST.rglob("*") if path.is_file()))):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def find_inputs(roots: Sequence[Path] = HOST) -> Inputs:
    """Find the parts on this host. Raises EngineUnavailable, naming what is missing and the command that adds it."""
    busybox = program("busybox")
    if _libraries(busybox):
        raise EngineUnavailable(f"The tiny guest needs a busybox that stands alone. {REMEDY}")
    kernel = newest_kernel(roots)
    root = next(root for root in roots if kernel.is_relative_to(root / "boot"))
    return Inputs(kernel, kernel.name.removeprefix("vmlinuz-"), busybox, tuple(program(name) for name in PROGRAMS), root)


def newest_kernel(roots: Sequence[Path] = HOST) -> Path:
    """The newest kernel whose modules are there, one made for clouds if possible; `roots` hold boot/ and lib/modules/. Raises EngineUnavailable."""

    def rank(path: Path) -> tuple[bool, list[int]]:
        return "cloud" in path.name, [int(number) for number in re.findall(r"\d+", path.name)]

    usable = [
        path
        for root in roots
        for path in (root / "boot").glob("vmlinuz-*")
        if os.access(path, os.R_OK) and (root / "lib/modules" / path.name.removeprefix("vmlinuz-")).is_dir()
    ]
    if not usable:
        raise EngineUnavailable(f"There is no Linux kernel that this user may read for the tiny guest. {REMEDY}")
    return max(usable, key=rank)


def program(name: str) -> Path:
    """Where a program is. Raises EngineUnavailable."""
    found = shutil.which(name, path=SEARCH)
    if found is None:
        raise EngineUnavailable(f"The tiny guest cannot be built: {name} is missing. {REMEDY}")
    return Path(found)


def build(out: Path, inputs: Inputs | None = None) -> None:
    """Write the guest's three files into the directory `out`, which appears at once and whole; what was there is replaced."""
    inputs = inputs or find_inputs()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".tiny-") as folder:
        work = Path(folder)
        fresh = work / "fresh"
        fresh.mkdir()
        shutil.copyfile(inputs.kernel, fresh / KERNEL)
        _build_initrd(work / "initrd", fresh / INITRD, inputs)
        _build_disk(work / "root", fresh / DISK, inputs)
        if out.exists():
            out.rename(work / "former")
        fresh.rename(out)


def _build_initrd(tree: Path, out: Path, inputs: Inputs) -> None:
    _lay_out(tree, "initrd", INITRD_FOLDERS)
    shutil.copy(inputs.busybox, tree / "bin/busybox")
    names = []
    for module in _modules(inputs):
        name = re.sub(r"\.ko(\..*)?$", ".ko", module.name)
        (tree / "lib" / name).write_bytes(_unpacked(module))
        names.append(name)
    (tree / "lib/order").write_text("".join(f"{name}\n" for name in names))
    listing = "\0".join(sorted(str(path.relative_to(tree)) for path in tree.rglob("*")))
    # Not compressed: unpacking costs an emulated machine more than reading.
    archive = _run(["cpio", "--create", "--format=newc", "--quiet", "--null", "--owner=0:0"], folder=tree, given=listing.encode())
    out.write_bytes(archive)


def _build_disk(tree: Path, out: Path, inputs: Inputs) -> None:
    _lay_out(tree, "root", ROOT_FOLDERS)
    shutil.copy(inputs.busybox, tree / "bin/busybox")
    for applet in _run([str(inputs.busybox), "--list"]).decode().split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("/bin/busybox")
    for name in ("init", "getty", "reboot"):
        (tree / "sbin" / name).symlink_to("/bin/busybox")
    for source in inputs.programs:
        shutil.copy(source, tree / PROGRAMS[source.name] / source.name)
        for library in _libraries(source):
            target = tree / library.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    raw = out.with_suffix(".raw")
    with raw.open("wb") as disk:
        disk.truncate(DISK_MIB << 20)
    # Few inodes and no lazy initialisation: a small image, and a guest that does not write to its disk while idle.
    options = ["-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0", "-J", "size=4", "-i", "65536", "-L", "atonix-tiny"]
    _run(["mke2fs", "-q", "-F", "-t", "ext4", *options, "-d", str(tree), str(raw)])
    if os.geteuid() != 0:
        _give_to_root(tree, raw)
    _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(out)])
    raw.unlink()


def _give_to_root(tree: Path, raw: Path) -> None:
    """Make root the owner of everything in a file system that another user filled."""
    lines = []
    for path in tree.rglob("*"):
        name = path.relative_to(tree)
        lines += [f"set_inode_field /{name} uid 0", f"set_inode_field /{name} gid 0"]
    _run(["debugfs", "-w", "-f", "-", str(raw)], given="\n".join(lines).encode())


def _lay_out(tree: Path, source: str, folders: Sequence[str]) -> None:
    shutil.copytree(GUEST / source, tree)
    for folder in folders:
        (tree / folder).mkdir(parents=True, exist_ok=True)
    for path in tree.rglob("*"):
        is_program = path.is_dir() or path.read_bytes().startswith(b"#!")
        path.chmod(0o755 if is_program else 0o644)
    if (shadow := tree / "etc/shadow").exists():
        shadow.chmod(0o600)


def _modules(inputs: Inputs) -> list[Path]:
    """Files of the drivers and of what they need, in the order in which they load; what is built into the kernel has none."""
    found: dict[Path, None] = {}
    for module in MODULES:
        listed = _run(["modprobe", "--dirname", str(inputs.root), "--set-version", inputs.kernel_version, "--show-depends", module]).decode()
        found.update(dict.fromkeys(Path(line.split()[1]) for line in listed.splitlines() if line.startswith("insmod ")))
    return list(found)


def _unpacked(module: Path) -> bytes:
    content = module.read_bytes()
    match module.suffix:
        case ".xz":
            return lzma.decompress(content)
        case ".gz":
            return gzip.decompress(content)
        case ".zst":
            return _run(["zstd", "--decompress", "--stdout"], given=content)
    return content


def _libraries(binary: Path) -> list[Path]:
    """Shared libraries that a program of this host needs; none if it stands alone."""
    listed = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listed.stdout)]


def _run(command: Sequence[str], *, folder: Path | None = None, given: bytes = b"") -> bytes:
    path = program(command[0])
    done = subprocess.run([str(path), *command[1:]], cwd=folder, input=given, capture_output=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise EngineRefused(f"The tiny guest cannot be built: {path.name} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """Build into the directory that the command line names."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m portal.engines.local.tiny_image OUTDIR\n")
        return 2
    out = Path(arguments[0]).resolve()
    build(out)
    for path in sorted(out.iterdir()):
        sys.stdout.write(f"{path.stat().st_size:>12,}  {path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
