"""Hears of every change of the routers' rules as it is made: a router without its rules lets everything pass, and must not wait for the next look."""

import logging
import selectors
import socket
import threading
from collections.abc import Callable

from portal.engines.local.network.namespaces import identity
from portal.engines.local.network.netlink import NetfilterSocket
from portal.engines.local.network.nft import NEW_GENERATION
from portal.engines.ports import EngineError

log = logging.getLogger("portal.engines.network")

# Of <linux/netlink.h> and <linux/netfilter/nfnetlink.h>; Python names neither.
SOL_NETLINK, ADD_MEMBERSHIP, RULES = 270, 1, 7


class RuleWatch:
    """Says of which VPC the rules were changed, whoever did it, in one thread that runs while there are any."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        """`changed` is called in that thread, with no lock held."""
        self._changed = changed
        self._guard = threading.Lock()
        self._sockets: dict[str, tuple[NetfilterSocket, int]] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread: threading.Thread | None = None
        self._closing = False

    def ensure(self, namespace: str, vpc_id: str) -> None:
        """Listen to a router. Raises EngineError."""
        with self._guard:
            had = self._sockets.get(vpc_id)
            if had is not None and had[1] == identity(namespace):
                return
            self._drop(vpc_id)
            link = NetfilterSocket(namespace)
            try:
                link.socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, RULES)
            except OSError as error:
                link.close()
                raise EngineError("The kernel does not tell of changes of its rules.") from error
            self._sockets[vpc_id] = (link, identity(namespace))
            self._selector.register(link.socket, selectors.EVENT_READ, (vpc_id, link))
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, daemon=True, name="rule-watch")
                self._thread.start()

    def remove(self, vpc_id: str) -> None:
        """Listen to a router no longer."""
        with self._guard:
            self._drop(vpc_id)

    def _drop(self, vpc_id: str) -> None:
        had = self._sockets.pop(vpc_id, None)
        if had is not None:
            self._selector.unregister(had[0].socket)
            had[0].close()

    def close(self) -> None:
        """Listen to nothing any more; not to be called with what `changed` waits for."""
        self._closing = True
        self._wake.send(b"w")
        if self._thread is not None:
            self._thread.join()
        with self._guard:
            for vpc_id in list(self._sockets):
                self._drop(vpc_id)
        self._selector.close()
        for end in (self._wake, self._woken):
            end.close()

    def _listen(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._woken.recv(4096)
                elif not self._closing and self._has_changed(*key.data):
                    try:
                        self._changed(key.data[0])
                    except (EngineError, OSError) as error:
                        # The next look finds it as well.
                        log.warning("the rules of %s were changed and could not be set again: %s", key.data[0], error)

    def _has_changed(self, vpc_id: str, link: NetfilterSocket) -> bool:
        with self._guard:
            if link.socket.fileno() < 0:
                return False
            try:
                return NEW_GENERATION in [kind for kind, _ in link.receive()]
            except (OSError, EngineError) as error:
                # More came than was read in time.
                log.debug("changes of the rules of %s were missed: %s", vpc_id, error)
                return True
