"""Secrets that several threads hold at once."""

from typing import Any

import pytest

from portal.engines.ports import EngineRefused

libvirt = pytest.importorskip("libvirt")


class _Kept:
    """What libvirt has of a secret."""

    def __init__(self) -> None:
        self.value, self.is_willing = b"", True

    def setValue(self, value: bytes, _flags: int) -> None:  # noqa: N802 - as libvirt has it
        if not self.is_willing:
            raise libvirt.libvirtError("out of memory")
        self.value = value

    def undefine(self) -> None:
        self.value = b""


def test_who_could_not_keep_a_secret_takes_it_from_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from portal.engines.local.secrets import Secrets

    secrets, kept = Secrets(None, None), _Kept()
    monkeypatch.setattr(secrets, "_secret", lambda _name: kept)
    monkeypatch.setattr(secrets, "_become_known", lambda: None)

    def fail() -> Any:
        kept.is_willing = False
        with pytest.raises(EngineRefused), secrets.unlocked({"volume": b"key"}):
            pass
        kept.is_willing = True

    with secrets.unlocked({"volume": b"key"}):
        fail()
        assert kept.value == b"key"
    assert kept.value == b""
