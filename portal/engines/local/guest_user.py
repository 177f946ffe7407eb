"""Who guests run as: a user without rights where that can be, in a group by which the firewall knows them in any case."""

import grp
import logging
import os
import pwd
import stat
import struct
from pathlib import Path

from portal.engines.local.accelerator import DEVICE

log = logging.getLogger("portal.engines.local")

# Distributions make this user together with libvirt's QEMU driver.
UNPRIVILEGED_USER = "libvirt-qemu"
# A file's access list as the kernel keeps it: a version, then entries of kind, rights and id.
ACCESS_LIST = "system.posix_acl_access"
VERSION, ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
OWNER, USER, GROUP, MASK, OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
NO_ID = 0xFFFFFFFF
READ_WRITE = 6


def guest_user(folder: Path, kvm: Path = DEVICE) -> str:
    """Name the user that guests run as: one without rights if it can reach their files in `folder`, else whoever runs this process."""
    if os.geteuid() != 0:
        return ""
    try:
        user = pwd.getpwnam(UNPRIVILEGED_USER)
    except KeyError:
        return "root"
    can_pass = all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.parents))
    # libvirt examines QEMU anew at each call, for a minute, where the portal may use /dev/kvm and its guests may not.
    return UNPRIVILEGED_USER if can_pass and (not kvm.exists() or _may_use(kvm, user) or _let_in(kvm, user)) else "root"


def guest_group(user: str) -> str:
    """The group that guests run in, whoever their user is: the firewall knows them by it."""
    try:
        return grp.getgrnam(UNPRIVILEGED_USER).gr_name
    except KeyError:
        return user


def _may_use(device: Path, user: pwd.struct_passwd) -> bool:
    found = device.stat()
    both = stat.S_IROTH | stat.S_IWOTH
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    may = found.st_mode & both == both or (found.st_gid in groups and found.st_mode & (both << 3) == both << 3)
    return may or (USER, READ_WRITE, user.pw_uid) in _access_list(device)


def _let_in(device: Path, user: pwd.struct_passwd) -> bool:
    """Add the user to the device's access list, until the host is booted anew: what its group gives it where that is the device's group."""
    entries = [entry for entry in _access_list(device) if entry[0] not in {USER, MASK} or entry[2] not in {user.pw_uid, NO_ID}]
    wanted = sorted([*entries, (USER, READ_WRITE, user.pw_uid), (MASK, READ_WRITE, NO_ID)], key=lambda entry: (entry[0], entry[2]))
    try:
        os.setxattr(device, ACCESS_LIST, VERSION.pack(2) + b"".join(ENTRY.pack(*entry) for entry in wanted))
    except OSError as error:
        log.warning("%s cannot be let to %s: %s", user.pw_name, device, error.strerror)
        return False
    return True


def _access_list(device: Path) -> list[tuple[int, int, int]]:
    try:
        kept = os.getxattr(device, ACCESS_LIST)
    except OSError:
        mode = device.stat().st_mode
        return [(OWNER, mode >> 6 & 7, NO_ID), (GROUP, mode >> 3 & 7, NO_ID), (OTHERS, mode & 7, NO_ID)]
    return [(kind, rights, owner) for kind, rights, owner in ENTRY.iter_unpack(kept[VERSION.size :])]
