"""Metrics of all web processes together: collected from their shared directory, with the figures of the process tree.

prometheus-flask-exporter serves them on the port of their own; the main port answers the same.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


class ProcessTree(Collector):
    """Memory and CPU time of the web server's process and its children."""

    def __init__(self, pid: int) -> None:
        """`pid` is the root of the tree."""
        self.pid = pid

    def collect(self) -> Iterator[Metric]:
        """Sum over the tree; a child that ends meanwhile counts as nothing."""
        memory, cpu, files = 0.0, 0.0, 0.0
        root = psutil.Process(self.pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                times = process.cpu_times()
                memory += process.memory_info().rss
                cpu += times.user + times.system + times.children_user + times.children_system
                files += process.num_fds()
            except psutil.NoSuchProcess:
                continue
        yield GaugeMetricFamily("process_resident_memory_bytes", "Memory usage", value=memory)
        yield CounterMetricFamily("process_cpu_seconds_total", "CPU time", value=cpu)
        yield GaugeMetricFamily("process_open_fds", "Open file descriptors", value=files)


def registry_of_all() -> CollectorRegistry:
    """A registry over the shared directory of all web processes."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(ProcessTree(os.getppid() if os.environ.get("PORTAL_WEB_CHILD") else os.getpid()))
    return registry


def collect() -> tuple[bytes, str]:
    """The exposition text and its content type."""
    directory = os.environ.get(DIRECTORY)
    registry = registry_of_all() if directory and Path(directory).is_dir() else REGISTRY
    return generate_latest(registry), CONTENT_TYPE_LATEST
