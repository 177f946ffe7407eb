"""The seed disk (NoCloud): an ISO image from which the guest reads its name, its keys and its script at first boot."""

import io
from collections.abc import Sequence
from pathlib import Path

from pycdlib import PyCdlib

from portal.engines.ports import EngineRefused, MachineSpec

MAX_USER_DATA_BYTES = 16 * 1024
LABEL = "cidata"


def write_seed(path: Path, spec: MachineSpec) -> None:
    """Write the seed disk; a guest that reads the former one goes on reading it."""
    if len(spec.user_data.encode()) > MAX_USER_DATA_BYTES:
        raise EngineRefused(f"User data is larger than {MAX_USER_DATA_BYTES // 1024} KiB.")
    iso = PyCdlib()
    iso.new(joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, text) in enumerate(
        (("meta-data", meta_data(spec.machine_id, spec.hostname, spec.ssh_public_keys)), ("user-data", spec.user_data))
    ):
        content = text.encode()
        iso.add_fp(io.BytesIO(content), len(content), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    fresh = path.with_suffix(".new")
    iso.write(str(fresh))
    iso.close()
    # A key or a password may be in the user data.
    fresh.chmod(0o600)
    fresh.replace(path)


def meta_data(instance_id: str, hostname: str, ssh_public_keys: Sequence[str]) -> str:
    """What the guest is told about itself, as YAML. Raises EngineRefused if a value could be taken for more than it is."""
    keys = [key.strip() for key in ssh_public_keys]
    if any(not key.isprintable() for key in (hostname, *keys)):
        raise EngineRefused("The hostname and each SSH key must be one line of plain text.")
    lines = [f"instance-id: {instance_id}", f"local-hostname: {hostname}"]
    if keys:
        lines += ["public-keys:", *(f"  - {key}" for key in keys)]
    return "\n".join(lines) + "\n"
