"""What a request costs: lists at 100 and at 100,000 instances side by side, then single requests under 16 clients.

`python -m bench.bench_http`. The load generator (wrk) runs on the same CPUs as the server, so requests per second are what is left for both.
"""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import psutil

from bench.installation import Installation, installation, web_server

FEW, MANY = 100, 100_000
ROUNDS = 150
CLIENTS = 16
SECONDS = 8
MIB = 1 << 20
API_LIST = "/api/v1/compute/instances?limit=20"
CONSOLE_LIST = "/compute/instances"
PROBE = """
done = function(summary, latency, requests)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('{"requests": %d, "seconds": %f, "bad": %d, "p50": %f, "p95": %f, "p99": %f}\\n', summary.requests,
    summary.duration / 1e6, bad, latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass(frozen=True)
class Target:
    """A request that is measured."""

    name: str
    path: str
    headers: dict[str, str]


def targets(made: Installation) -> list[Target]:
    token = {"Authorization": f"Token {made.token}"}
    cookie = {"Cookie": f"__Host-atonix_session={made.session_secret}"}
    return [
        Target("API list", API_LIST, token),
        Target("console list", CONSOLE_LIST, cookie),
        Target("API GET by id", f"/api/v1/compute/instances/{made.instance_id}", token),
    ]


@contextmanager
def connection(made: Installation) -> Iterator[HTTPConnection]:
    link = HTTPConnection("127.0.0.1", made.settings.portal_port, timeout=60)
    yield link
    link.close()


def ask(link: HTTPConnection, target: Target) -> float:
    """Milliseconds of one request, which has to succeed."""
    started = time.perf_counter()
    link.request("GET", target.path, headers=target.headers)
    answer = link.getresponse()
    body = answer.read()
    assert answer.status == 200, (target.path, answer.status, body[:300])
    return (time.perf_counter() - started) * 1000


def growth(few: Installation, many: Installation) -> None:
    """The lists of both installations, asked in turns so that whatever else the machine does meets both."""
    print(f"{'list of 20':<22}{f'{FEW} ms':>14}{f'{MANY:,} ms':>14}{'ratio':>10}   (at most 1.3)")
    for small, large in zip(targets(few)[:2], targets(many)[:2], strict=True):
        with connection(few) as to_few, connection(many) as to_many:
            times: tuple[list[float], list[float]] = ([], [])
            for turn in range(ROUNDS + 20):
                pair = (ask(to_few, small), ask(to_many, large))
                if turn >= 20:
                    times[0].append(pair[0])
                    times[1].append(pair[1])
        low, high = statistics.median(times[0]), statistics.median(times[1])
        print(f"{small.name:<22}{low:>14.2f}{high:>14.2f}{high / low:>10.2f}")


def cpu_s(pid: int) -> float:
    root = psutil.Process(pid)
    return sum(t.user + t.system for t in (p.cpu_times() for p in [root, *root.children(recursive=True)]))


def load(made: Installation, pid: int, directory: Path) -> None:
    """Every target under 16 clients."""
    script = directory / "percentiles.lua"
    script.write_text(PROBE)
    print(f"\n{f'{CLIENTS} clients, {os.cpu_count()} CPUs':<22}{'req/s':>10}{'CPU ms/req':>12}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}")
    for target in targets(made):
        headers = [part for name, value in target.headers.items() for part in ("-H", f"{name}: {value}")]
        url = f"http://127.0.0.1:{made.settings.portal_port}{target.path}"
        before = cpu_s(pid)
        done = subprocess.run(
            ["wrk", "-t1", f"-c{CLIENTS}", f"-d{SECONDS}s", "-s", str(script), *headers, url], capture_output=True, text=True, check=True
        )
        used = cpu_s(pid) - before
        found = json.loads(done.stdout.strip().splitlines()[-1])
        assert found["bad"] == 0, done.stdout
        figures = f"{found['requests'] / found['seconds']:>10.0f}{used * 1000 / found['requests']:>12.2f}"
        print(f"{target.name:<22}{figures}{found['p50']:>10.1f}{found['p95']:>10.1f}{found['p99']:>10.1f}")


def alone(made: Installation) -> None:
    """One client, one request after the other."""
    print(f"\n{'1 client':<22}{'':>22}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}")
    for target in targets(made):
        with connection(made) as link:
            times = sorted([ask(link, target) for _ in range(ROUNDS * 4)][20:])
        marks = [times[int(len(times) * share) - 1] for share in (0.5, 0.95, 0.99)]
        print(f"{target.name:<22}{'':>22}" + "".join(f"{mark:>10.1f}" for mark in marks))


def weight(pid: int) -> None:
    """Memory of the web server: resident of each process, and what it does not share with the others."""
    root = psutil.Process(pid)
    processes = [root, *root.children(recursive=True)]
    own = sum(p.memory_full_info().uss for p in processes) / MIB
    print(
        f"\nweb server at rest: {len(processes)} processes, "
        + ", ".join(f"{p.memory_info().rss / MIB:.0f}" for p in processes)
        + f" MiB, {own:.0f} MiB of their own"
    )


def main() -> None:
    """Print the tables."""
    if shutil.which("wrk") is None:
        raise SystemExit("bench_http needs wrk; `make setup-dev` installs it.")
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two, ExitStack() as stack:
        few = stack.enter_context(installation(Path(one), instances=FEW))
        many = stack.enter_context(installation(Path(two), instances=MANY))
        pid = stack.enter_context(web_server(few))
        stack.enter_context(web_server(many))
        threading.Event().wait(2)
        weight(pid)
        growth(few, many)
        alone(few)
        load(few, pid, Path(one))


if __name__ == "__main__":
    main()
