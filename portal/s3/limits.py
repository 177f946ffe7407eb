"""How many requests the S3 interface takes: of each access key, and of each address without one or with one that is wrong."""

import logging
import math
import time

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter

from portal.s3.errors import S3Error
from portal.s3.server import workers
from portal.settings import Settings

log = logging.getLogger("portal.s3")


class RequestLimits:
    """Counts requests, in the storage that the limits of the API have; processes that count each for itself share what one caller has."""

    def __init__(self, settings: Settings) -> None:
        """The limits as the settings say; 0 is none."""
        sharing = workers(settings) if settings.rate_limit_storage.startswith("memory:") else 1
        self._counter = FixedWindowRateLimiter(storage_from_string(settings.rate_limit_storage, wrap_exceptions=True))
        self._of_key, self._of_address = (
            RateLimitItemPerMinute(max(1, limit // sharing), namespace=f"s3-{name}") if limit else None
            for name, limit in (("key", settings.s3_rate_limit_per_minute), ("address", settings.s3_rate_limit_anonymous_per_minute))
        )

    def count_key(self, access_key: str) -> None:
        """A request that is signed with an access key. Raises SlowDown."""
        self._count(self._of_key, access_key, "this access key")

    def count_address(self, address: str) -> None:
        """A request of nobody, or one whose signature is wrong. Raises SlowDown."""
        self._count(self._of_address, address, "your address without a valid signature")

    def _count(self, limit: RateLimitItem | None, who: str, by: str) -> None:
        if limit is None:
            return
        try:
            if self._counter.hit(limit, who):
                return
            left_s = self._counter.get_window_stats(limit, who).reset_time - time.time()
        except StorageError as error:
            # Whoever counts is away: better to serve than to stop.
            log.warning("Requests are not counted: %s", error.storage_error)
            return
        wait_s = max(1, math.ceil(left_s))
        raise S3Error(
            "SlowDown",
            f"There were more than {limit.amount:,} requests a minute by {by}. Wait {wait_s} seconds.",
            headers={"Retry-After": str(wait_s)},
        )
