"""gunicorn's messages in the portal's log, for every server of the portal that runs under it."""

import logging
from typing import Any

from gunicorn.glogging import Logger


class PortalLogger(Logger):  # type: ignore[misc] # the library has no types
    """gunicorn's messages as the portal's own lines; requests are logged by the application, which knows who asked."""

    def setup(self, cfg: Any) -> None:
        """Hand everything to the handlers of the root logger."""
        del cfg
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Nothing: the address of a request may hold what must not be kept."""
