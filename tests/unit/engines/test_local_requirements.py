"""What is missing on a host is said, with the command that adds it, and never raised."""

import os
import sys
from pathlib import Path

import pytest

from portal.engines.local import firewall, requirements, tiny_image
from portal.engines.local.compute import LocalCompute
from portal.engines.ports import EngineUnavailable
from portal.engines.registry import compute_status, open_engines
from tests.support.databases import settings_for


def programs(folder: Path, *names: str) -> str:
    """A PATH with these programs on it and no others."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("missing", requirements.PROGRAMS)
def test_a_program_that_is_missing(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [name for name in requirements.PROGRAMS if name != missing]
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", *others))
    found = LocalCompute(tmp_path / "var").capability()
    assert (found.available, found.reason) == (False, f"{missing} is not installed.")
    assert "apt-get install" in found.remedy
    assert not (tmp_path / "var").exists(), "a host that cannot run guests is left as it is"


def test_the_binding_to_libvirt_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", *requirements.PROGRAMS))
    # This is how Python keeps a module for absent.
    monkeypatch.setitem(sys.modules, "libvirt", None)
    engine = LocalCompute(tmp_path / "var")
    assert "libvirt-python" in engine.capability().reason
    with pytest.raises(EngineUnavailable, match="libvirt-python"):
        engine.machines()


def test_another_system_than_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.engines.local.requirements.sys.platform", "darwin")
    found, capacity = compute_status(open_engines(settings_for(tmp_path, engine_compute="local"), owner=True))
    assert (found.available, capacity) == (False, None)
    assert "need Linux" in found.reason


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file where a directory should be")
    found = LocalCompute(tmp_path / "var").capability()
    assert (found.available, found.reason) == (False, "The engine's directory under DATA_DIR cannot be made: Not a directory.")
    assert "DATA_DIR" in found.remedy


def test_the_guests_parts_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineUnavailable, match=r"no Linux kernel that this user may read.*linux-image-cloud-amd64"):
        tiny_image.newest_kernel((tmp_path,))
    monkeypatch.setattr(tiny_image, "SEARCH", programs(tmp_path / "bin", "sh"))
    with pytest.raises(EngineUnavailable, match=r"busybox is missing.*busybox-static"):
        tiny_image.find_inputs((tmp_path,))


def test_the_newest_kernel_for_clouds_whose_modules_are_there(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    for version in ("6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.9.0-1-amd64", "6.1.0-11-cloud-amd64"):
        (tmp_path / "boot" / f"vmlinuz-{version}").touch()
        if version != "6.1.0-11-cloud-amd64":
            (tmp_path / "lib/modules" / version).mkdir(parents=True)
    assert tiny_image.newest_kernel((tmp_path / "absent", tmp_path)).name == "vmlinuz-6.1.0-10-cloud-amd64"


@pytest.mark.skipif(os.geteuid() != 0, reason="the rule is root's to set")
def test_why_guests_get_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no group no-such-group" in firewall.keep_off_loopback("no-such-group")
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", "nft"))
    assert "refuses the rule" in firewall.keep_off_loopback("root")
    monkeypatch.setenv("PATH", programs(tmp_path / "empty"))
    assert "nftables is not installed" in firewall.keep_off_loopback("root")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "does not run as root" in firewall.keep_off_loopback("root")
