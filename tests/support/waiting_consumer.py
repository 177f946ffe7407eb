"""A process that takes ids from the broker and keeps those that begin with `slow` until its input ends; then it ends, as a worker does."""

import sys
import threading

from portal.settings import Settings
from portal.worker.delivery import Consumer


def main() -> None:
    """Says each id that it was offered."""
    free = threading.Event()

    def offer(job_id: str) -> bool:
        print(job_id, flush=True)  # noqa: T201 - the test reads it
        return not job_id.startswith("slow") or free.wait()

    consumer = Consumer(Settings.load(), offer)
    consumer.start()
    sys.stdin.read()
    free.set()
    consumer.halt()
    consumer.join()


if __name__ == "__main__":
    main()
