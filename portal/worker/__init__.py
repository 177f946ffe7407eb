"""Processes that do the work behind the pages: job workers, the scheduler, delivery by a broker, and the supervisor of them all."""
