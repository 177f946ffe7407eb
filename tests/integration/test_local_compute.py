"""What only guests that really boot can show about the local engine."""

import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from portal.engines.local import LocalConsole
from portal.engines.local.guest_user import UNPRIVILEGED_USER
from portal.engines.local.logs import KEEP_BYTES
from portal.engines.ports import MachineSample, MachineSpec, MachineState
from tests.support.hosts import READY_S, EngineProcess, Host, local_host, process_directory, process_of, why_no_local_host
from tests.support.servers import until

pytestmark = [pytest.mark.vm, pytest.mark.skipif(why_no_local_host() != "", reason=why_no_local_host() or "guests run here")]

TINY = "atonix-tiny"
HOSTILE_WORDS = 'it\'s "quoted" $(touch /tmp/oops) `id` \\ <tag> ünï ]]>'


@pytest.fixture(scope="module")
def installation() -> Iterator[Host]:
    with local_host() as host:
        host.engine.ensure_builtin_image(TINY)
        yield host


@pytest.fixture
def host(installation: Host) -> Iterator[Host]:
    yield installation
    installation.clear()


def sample_of(host: Host) -> MachineSample:
    (found,) = host.engine.samples()
    return found


def test_a_guest_gets_its_name_its_keys_and_runs_its_script_once_and_safely(host: Host) -> None:
    script = f"#!/bin/sh\ncat <<'END'\nSAID {HOSTILE_WORDS}\nEND\ncat /root/.ssh/authorized_keys\nls /tmp\necho RAN-ON $(hostname)\n"
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB5wbGFpbmx5YW5leGFtcGxlb2ZhcHVibGlja2V5 me@laptop"
    spec = host.booted(hostname="db-primary", user_data=script, ssh_public_keys=[key])
    log = host.log(spec).replace("\r\n", "\n")
    assert f"SAID {HOSTILE_WORDS}\n" in log
    assert "RAN-ON db-primary" in log
    assert key in log
    assert "oops" not in log.split("SAID", 1)[1].split("\n", 1)[1]
    assert "user-data ended with status 0" in log
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=30)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY", times=2)
    assert host.log(spec).count("RAN-ON") == 1


def test_a_guest_that_shuts_itself_down_has_stopped_and_stays_so(host: Host) -> None:
    spec = host.running(user_data="#!/bin/sh\npoweroff\n")
    until(lambda: host.engine.machine_state(spec.machine_id) is not MachineState.RUNNING, within_s=60, what="the guest's own end", every_s=0.2)
    assert host.engine.machine_state(spec.machine_id) is MachineState.STOPPED
    host.reopen()
    assert host.engine.machines() == {spec.machine_id: MachineState.STOPPED}


def test_a_machine_outlives_workers_that_are_killed_and_the_next_one_controls_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    data_dir, machine_id = tmp_path_factory.mktemp("adopted"), "i-adopted0"
    console = LocalConsole(data_dir)
    with EngineProcess(data_dir, machine_id) as first:
        assert first.ask("start") == MachineState.RUNNING
        first.kill()
    qemu = process_of(machine_id)
    # The web process needs no engine for the consoles, so neither does a worker that is dead keep it from them.
    until(lambda: b"READY" in console.log_tail(machine_id, max_bytes=1 << 20), within_s=READY_S, what="the guest to come up", every_s=0.2)
    with console.open_display(machine_id) as display:
        assert display.recv(3) == b"RFB"
    with EngineProcess(data_dir, machine_id) as second:
        assert second.ask("look") == MachineState.RUNNING
        assert process_of(machine_id) == qemu
        second.kill()
    # Nobody is there to see how it ends.
    os.kill(qemu, signal.SIGKILL)
    until(lambda: not is_process(qemu), within_s=10, what="its end")
    with EngineProcess(data_dir, machine_id) as third:
        assert third.ask("look") == MachineState.CRASHED
        assert third.ask("start") == MachineState.RUNNING
        until(lambda: console.log_tail(machine_id, max_bytes=1 << 20).count(b"READY") == 2, within_s=READY_S, what="the healed guest", every_s=0.2)
        assert third.ask("stop") == MachineState.STOPPED
        assert b"power button" in console.log_tail(machine_id, max_bytes=1 << 20), "the guest was asked, not killed"
        assert third.ask("remove") == MachineState.ABSENT


def is_process(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_guest_that_does_not_listen_is_ended(host: Host) -> None:
    # The guest's own acpid is what hears the power button.
    spec = host.booted(user_data="#!/bin/sh\nkillall acpid\n")
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=3)
    assert host.engine.machine_state(spec.machine_id) is MachineState.STOPPED
    assert "power button" not in host.log(spec)


def test_the_guest_sees_its_new_size(host: Host) -> None:
    probe = "echo SIZE $(nproc) $(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo) $(cat /sys/block/vda/size)"
    spec = host.booted()
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=30)
    larger = replace(spec, vcpus=2, memory_mib=320, root_disk_gib=3)
    host.engine.ensure_disk(larger)
    host.engine.ensure_defined(larger)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY", times=2)
    heard = host.run(spec, probe).split(b"SIZE 2 ")[1]
    until(lambda: filesystem_mib(host, spec) > 2500, within_s=30, what="the root file system to grow", every_s=0.5)
    memory_mib, sectors = (int(word) for word in heard.split()[:2])
    assert 256 < memory_mib <= 320
    assert sectors == 3 << 21


def filesystem_mib(host: Host, spec: MachineSpec) -> int:
    return int(host.run(spec, "df -m / | awk 'END {print \"MIB\", $2}'").split(b"MIB ")[1].split()[0])


def test_measurements_follow_what_the_guest_does_and_begin_anew_at_a_boot(host: Host) -> None:
    spec = host.booted()
    before = sample_of(host)
    # Ten packets of 1,000 bytes go out to the gateway and come back.
    host.run(spec, "dd if=/dev/zero of=/big bs=1M count=8 conv=fsync; ping -c 10 -i 0.1 -s 1000 10.0.2.2")
    until(lambda: sample_of(host).disk_write_bytes - before.disk_write_bytes >= 8 << 20, within_s=20, what="the writes to be seen", every_s=0.5)
    after = sample_of(host)
    assert after.cpu_time_ns > before.cpu_time_ns
    # Each packet with 42 bytes of headers; questions for addresses come on top.
    assert 10_420 <= after.net_out_bytes - before.net_out_bytes < 12_000
    assert 10_420 <= after.net_in_bytes - before.net_in_bytes < 12_000
    assert 0 < after.memory_used_bytes < after.memory_total_bytes == 192 << 20
    host.kill_outside(spec.machine_id)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY", times=2)
    assert 0 < sample_of(host).net_out_bytes < before.net_out_bytes + 2_000


def test_notes_of_packets_take_no_room(host: Host) -> None:
    spec = host.booted()
    notes = process_directory() / "engine" / "run" / f"{spec.machine_id}.sent"
    host.run(spec, "ping -c 400 -i 0.005 10.0.2.2 > /dev/null")
    assert notes.stat().st_size > 400 * 17
    host.engine.samples()
    assert notes.stat().st_blocks * 512 <= 4096
    counted = sample_of(host).net_out_bytes
    host.engine.close()
    grown = notes.stat().st_size
    host.run(spec, "ping -c 50 -i 0.005 10.0.2.2 > /dev/null")
    assert notes.stat().st_size == grown, "nobody reads them, so none are written"
    host.reopen()
    host.engine.machines()
    host.run(spec, "ping -c 3 10.0.2.2 > /dev/null")
    assert counted < sample_of(host).net_out_bytes < counted + 50 * 98


def test_a_guest_that_prints_for_ever_fills_no_disk(host: Host) -> None:
    spec = host.booted()
    log = process_directory() / "engine" / "machines" / spec.machine_id / "console.log"
    host.run(spec, "yes 0123456789012345678901234567890123456789 | head -c 1500000")
    until(lambda: log.stat().st_size > 1_500_000, within_s=10, what="it to be written")
    host.engine.machines()
    assert log.stat().st_blocks * 512 <= KEEP_BYTES + 8192
    tail = host.console.log_tail(spec.machine_id, max_bytes=4 << 20)
    assert not tail.startswith(b"\0")
    assert b"it-is-done" in tail[-100:]
    assert len(tail) > KEEP_BYTES // 2


def test_the_display_shakes_hands(host: Host) -> None:
    spec = host.running()
    with host.console.open_display(spec.machine_id) as display:
        display.settimeout(10)
        assert display.recv(12) == b"RFB 003.008\n"
        display.sendall(b"RFB 003.008\n")
        # One way in, without a password: the portal has decided before.
        assert display.recv(2) == b"\x01\x01"
        display.sendall(b"\x01")
        assert display.recv(4) == bytes(4)
        display.sendall(b"\x01")
        size = display.recv(24)
        assert int.from_bytes(size[:2], "big") >= 640
        assert int.from_bytes(size[2:4], "big") >= 350


def test_the_guests_process_has_few_rights(host: Host) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give rights up")
    spec = host.running()
    process = Path(f"/proc/{process_of(spec.machine_id)}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    nobody = pwd.getpwnam(UNPRIVILEGED_USER)
    assert status["Uid"].split() == [str(nobody.pw_uid)] * 4
    assert int(status["CapEff"], 16) == 0
    # 2: system calls are filtered.
    assert status["Seccomp"].strip() == "2"
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    assert f"pid={process.name}," not in listening


def test_files_of_a_machine_are_private_and_gone_with_it(host: Host) -> None:
    spec = host.running(user_data="#!/bin/sh\necho secret\n")
    root = process_directory() / "engine"
    folder = root / "machines" / spec.machine_id
    assert {path.name for path in folder.iterdir()} >= {"disk.qcow2", "seed.iso", "console.log"}
    for name in ("disk.qcow2", "seed.iso", "console.log"):
        assert (folder / name).stat().st_mode & 0o077 == 0, name
    host.engine.remove_machine(spec.machine_id)
    assert [path for path in root.rglob("*") if spec.machine_id in path.name] == []


def test_nobody_takes_the_sockets_of_a_machine(host: Host) -> None:
    spec = host.running()
    run = process_directory() / "engine" / "run"
    for suffix in ("serial", "vnc"):
        # Whoever is neither the guests' user nor root cannot connect.
        assert (run / f"{spec.machine_id}.{suffix}").stat().st_mode & 0o002 == 0, suffix
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(run / f"{spec.machine_id}.vnc"))
