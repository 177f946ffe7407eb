"""How the web server is started, and where its neighbours find it."""

from pathlib import Path

import pytest

from portal.http.local import ask, local_host, local_url
from portal.http.server import command_line, metrics_directory, no_metrics_port, start_metrics
from tests.support.databases import settings_for
from tests.support.servers import answers, free_port


@pytest.mark.parametrize(
    ("host", "found", "url"),
    [
        ("", "127.0.0.1", "http://127.0.0.1:81"), ("0.0.0.0", "127.0.0.1", "http://127.0.0.1:81"), ("::", "127.0.0.1", "http://127.0.0.1:81"),  # noqa: S104
        ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:81"), ("::1", "::1", "http://[::1]:81"), ("portal.example.org", "portal.example.org", "http://portal.example.org:81"),
    ],
)  # fmt: skip
def test_neighbours_find_the_server_wherever_it_listens(tmp_path: Path, host: str, found: str, url: str) -> None:
    settings = settings_for(tmp_path, portal_host=host, portal_port=81)
    assert (local_host(settings), local_url(settings)) == (found, url)


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        ask(settings_for(tmp_path, portal_port=free_port()), "/health", timeout_s=1)


def test_the_command_line_carries_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "counter_1.db").write_bytes(b"left from a server that was killed")
    command = command_line(settings_for(tmp_path, portal_port=8123, web_workers=3, web_threads=7))
    assert command[command.index("--bind") : command.index("--bind") + 2] == ["--bind", "127.0.0.1:8123"]
    assert [command[command.index(name) + 1] for name in ("--workers", "--threads")] == ["3", "7"]
    assert "nothing to guard" not in " ".join(command)
    assert list((tmp_path / "metrics").iterdir()) == []


def test_counts_are_kept_in_memory_where_a_full_disk_cannot_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    settings = settings_for(tmp_path / "var")
    monkeypatch.setattr("portal.http.server.SHARED_MEMORY", tmp_path)
    found = metrics_directory(settings)
    assert (found.parent, found.stat().st_mode & 0o777) == (tmp_path, 0o700)
    assert metrics_directory(settings) == found
    assert metrics_directory(settings_for(tmp_path / "other")) != found
    found.rmdir()
    found.symlink_to(tmp_path)
    assert metrics_directory(settings) == settings.data_dir.resolve() / "metrics"
    monkeypatch.setattr("portal.http.server.SHARED_MEMORY", tmp_path / "missing")
    assert metrics_directory(settings) == settings.data_dir.resolve() / "metrics"


def test_the_metrics_port_is_opened_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.request import urlopen

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert no_metrics_port(settings_for(tmp_path, metrics_port=0))
    settings = settings_for(tmp_path, metrics_port=free_port())
    assert not no_metrics_port(settings)
    server, thread = start_metrics(settings)
    try:
        with urlopen(f"http://127.0.0.1:{settings.metrics_port}/metrics") as answer:
            assert b"process_resident_memory_bytes" in answer.read()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not answers(settings.metrics_port)
