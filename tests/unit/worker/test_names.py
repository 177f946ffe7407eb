"""Names of workers: from them others on the host can tell which are gone, and of those elsewhere nothing is said."""

import subprocess
import sys

from portal.worker.names import is_gone, own_name

SAY = "from portal.worker.names import own_name; print(own_name())"


def test_a_process_that_has_ended_is_gone() -> None:
    ended = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True).stdout.strip()
    assert is_gone(ended)
    assert not is_gone(own_name())


def test_another_process_with_the_same_number_is_another() -> None:
    host, pid, began, space = own_name().split(":")
    assert is_gone(f"{host}:{pid}:{int(began) - 1}:{space}")


def test_of_others_nobody_knows() -> None:
    host, _, began, space = own_name().split(":")
    # On another host, in another container of the same name, of an older version, or no worker of the portal at all.
    for name in (f"elsewhere:1:{began}:{space}", f"{host}:99999999:{began}:1", f"{host}:99999999", "test", "", f"{host}:x:{began}:{space}"):
        assert not is_gone(name), name
    assert is_gone(f"{host}:99999999:{began}:{space}")
