"""Where the tiny guest's kernel is found."""

from pathlib import Path

import pytest

from portal.engines.local.tiny_image import newest_kernel
from portal.engines.ports import EngineUnavailable


def kernel(root: Path, version: str, *, with_modules: bool = True) -> Path:
    path = root / "boot" / f"vmlinuz-{version}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if with_modules:
        (root / "lib/modules" / version).mkdir(parents=True)
    return path


def test_a_kernel_that_was_only_unpacked_is_found_beside_the_hosts_own(tmp_path: Path) -> None:
    host, unpacked = tmp_path / "host", tmp_path / "guest-kernel"
    kernel(host, "6.1.0-9-amd64")
    cloud = kernel(unpacked, "6.1.0-9-cloud-amd64")
    assert newest_kernel((host, unpacked)) == cloud


def test_the_newest_with_its_modules_is_taken(tmp_path: Path) -> None:
    kernel(tmp_path, "6.1.0-9-cloud-amd64")
    newest = kernel(tmp_path, "6.1.0-10-cloud-amd64")
    kernel(tmp_path, "6.1.0-11-cloud-amd64", with_modules=False)
    assert newest_kernel((tmp_path,)) == newest


def test_without_a_kernel_the_command_is_named_that_adds_one(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="apt-get install"):
        newest_kernel((tmp_path,))
