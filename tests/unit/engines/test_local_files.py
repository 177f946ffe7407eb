"""Files of the local engine: notes of packets, logs that are kept small, first-boot data, rights to a device, images that lie."""

import io
import os
import pwd
import struct
from pathlib import Path

import pytest
from pycdlib import PyCdlib

from portal.engines.local import guest_user, qemu_img
from portal.engines.local.console import LocalConsole
from portal.engines.local.image_store import ImageStore
from portal.engines.local.logs import KEEP_BYTES, bound
from portal.engines.local.paths import LocalPaths, MachineFiles
from portal.engines.local.seed import write_seed
from portal.engines.local.traffic import FILE_HEADER_BYTES, PACKET, Traffic, forget, measure
from portal.engines.local.volume_store import VolumeStore
from portal.engines.ports import EngineRefused, MachineSpec
from tests.support.hosts import GIB, qcow2_image

MACHINE = "i-0123456789"
needs_qemu_img = pytest.mark.skipif(not os.access("/usr/bin/qemu-img", os.X_OK), reason="qemu-img is not installed")


@pytest.fixture
def files(tmp_path: Path) -> MachineFiles:
    paths = LocalPaths(tmp_path)
    paths.make()
    found = paths.machine(MACHINE)
    found.folder.mkdir()
    return found


def note(path: Path, *lengths: int, tail: bytes = b"") -> None:
    """Append what QEMU notes of packets."""
    if not path.exists():
        path.write_bytes(b"\xd4\xc3\xb2\xa1".ljust(FILE_HEADER_BYTES, b"\0"))
    with path.open("ab") as out:
        out.write(b"".join(PACKET.pack(1, 2, 1, length, 0xFF) for length in lengths) + tail)


def test_packets_are_added_up_once(files: MachineFiles) -> None:
    assert measure(files) == Traffic(0, 0)
    note(files.sent, 60, 1500)
    note(files.received, 90)
    assert measure(files) == Traffic(received_bytes=90, sent_bytes=1560)
    assert measure(files) == Traffic(90, 1560)
    # QEMU is in the middle of a note: it counts when it is whole.
    whole = PACKET.pack(1, 2, 1, 1000, 0xFF)
    note(files.sent, 40, tail=whole[:9])
    assert measure(files) == Traffic(90, 1600)
    with files.sent.open("ab") as out:
        out.write(whole[9:])
    assert measure(files) == Traffic(90, 2600)
    forget(files)
    note(files.sent, 70)
    assert measure(files) == Traffic(0, 70)


def test_notes_that_were_read_take_no_room(files: MachineFiles) -> None:
    note(files.sent, *[100] * 200_000)
    assert files.sent.stat().st_blocks * 512 > 3_000_000
    assert measure(files).sent_bytes == 20_000_000
    assert files.sent.stat().st_blocks * 512 <= 8192
    note(files.sent, 100)
    assert measure(files).sent_bytes == 20_000_100


def test_a_log_keeps_its_end(files: MachineFiles, tmp_path: Path) -> None:
    lines = b"".join(f"line {number:09}\n".encode() for number in range(300_000))
    files.log.write_bytes(lines)
    bound(files.log)
    assert files.log.stat().st_blocks * 512 <= KEEP_BYTES + 8192
    tail = LocalConsole(tmp_path).log_tail(MACHINE, max_bytes=len(lines))
    assert lines.endswith(tail)
    assert KEEP_BYTES <= len(tail) <= KEEP_BYTES + 4096


def test_a_link_in_place_of_a_log_is_not_followed(files: MachineFiles, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * (4 << 20))
    files.log.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        bound(files.log)
    assert precious.read_bytes() == b"x" * (4 << 20)


@pytest.mark.parametrize("user_data", ["", '#!/bin/sh\necho "it\'s" $(id) `id` <tag> ]]> \\\n', "line\r\n\0binary\x7f", "ünï" * 2000])
def test_first_boot_data_arrive_as_they_were_given(files: MachineFiles, user_data: str) -> None:
    key = "ssh-ed25519 AAAA me: \"quoted\" 'too' # not a comment"
    write_seed(files.seed, MachineSpec(MACHINE, "web-1", 1, 192, 1, "atonix-tiny", ssh_public_keys=[key], user_data=user_data))
    iso = PyCdlib()
    iso.open(str(files.seed))
    found = {}
    for name in ("meta-data", "user-data"):
        out = io.BytesIO()
        iso.get_file_from_iso_fp(out, rr_path=f"/{name}")
        found[name] = out.getvalue().decode()
    iso.close()
    assert found["user-data"] == user_data
    assert found["meta-data"] == f"instance-id: {MACHINE}\nlocal-hostname: web-1\npublic-keys:\n  - {key}\n"
    assert files.seed.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("changes", [{"hostname": "web\nuser-data: x"}, {"ssh_public_keys": ["ssh-rsa A\nssh-rsa B"]}, {"ssh_public_keys": ["a\0b"]}])
def test_first_boot_data_that_would_be_more_than_they_seem_are_refused(files: MachineFiles, changes: dict[str, object]) -> None:
    given = {"machine_id": MACHINE, "hostname": "web-1", "vcpus": 1, "memory_mib": 192, "root_disk_gib": 1, "image_id": "atonix-tiny", **changes}
    with pytest.raises(EngineRefused, match="one line of plain text"):
        write_seed(files.seed, MachineSpec(**given))  # type: ignore[arg-type]
    assert not files.seed.exists()


@pytest.mark.parametrize("machine_id", ["../../etc", "i-1/../../x", "i-1\n", "", "I-1", "i-" + "a" * 80, ".", "i-1.", "i-ü1"])
def test_no_id_leads_out_of_the_directory(tmp_path: Path, machine_id: str) -> None:
    for place in (LocalPaths(tmp_path).machine, LocalPaths(tmp_path).image):
        with pytest.raises(EngineRefused):
            place(machine_id)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can let others in")
def test_the_guests_user_is_let_to_the_device(tmp_path: Path) -> None:
    try:
        user = pwd.getpwnam(guest_user.UNPRIVILEGED_USER)
    except KeyError:
        pytest.skip("libvirt's user is not on this machine")
    reachable = Path("/run")
    device = tmp_path / "kvm"
    device.touch(0o660)
    assert guest_user.guest_user(reachable, device) == user.pw_name
    kept = os.getxattr(device, guest_user.ACCESS_LIST)
    assert struct.pack("<HHI", guest_user.USER, guest_user.READ_WRITE, user.pw_uid) in kept
    # Whoever else was let in stays in, and nobody is added twice.
    assert guest_user.guest_user(reachable, device) == user.pw_name
    assert os.getxattr(device, guest_user.ACCESS_LIST) == kept
    assert device.stat().st_mode & 0o007 == 0
    # A directory that others cannot pass through, as pytest's own are: guests run as root.
    hidden = tmp_path / "hidden"
    hidden.mkdir(0o700)
    assert guest_user.guest_user(hidden, device) == "root"


@needs_qemu_img
def test_an_image_that_promises_more_than_is_allowed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(qcow2_image(size=100 * GIB))
    with pytest.raises(EngineRefused, match="has 100 GiB; at most 50 GiB"):
        ImageStore(LocalPaths(tmp_path), VolumeStore({}), most_gib=50).inspect(image)
    assert qemu_img.inspect(image, most_gib=100).virtual_size_bytes == 100 * GIB


@needs_qemu_img
@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 512, (1 << 64) - 512])
def test_an_image_of_absurd_size_is_refused_at_once(tmp_path: Path, size: int) -> None:
    image = tmp_path / "image"
    content = bytearray(qcow2_image())
    content[24:32] = struct.pack(">Q", size)
    image.write_bytes(content)
    with pytest.raises(EngineRefused):
        qemu_img.inspect(image)
