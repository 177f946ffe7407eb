"""All benches, one after the other: `python -m bench`."""

import importlib

BENCHES = (
    "bench_http", "bench_jobs", "bench_boot", "bench_policy", "bench_audit", "bench_network", "bench_network_portal", "bench_s3_wire", "bench_s3",
)  # fmt: skip


def main() -> None:
    """Run them."""
    for name in BENCHES:
        module = importlib.import_module(f"bench.{name}")
        print(f"== {name}: {(module.__doc__ or '').splitlines()[0]}")
        module.main()
        print()


main()
