"""Who used which key for what: counted in memory and written a moment later, a row for each hour and not for each use.

A process that is killed loses the counts of a few seconds; the audit log, which has every call of the API, does not depend on this.
"""

import atexit
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Engine, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from portal.kernel.context import SYSTEM, Context
from portal.kernel.db import insert_of, now, transaction
from portal.security.key_models import EncryptionKey, KeyUsage

log = logging.getLogger("portal.keys")
DELAY_S = 5.0
KEPT = timedelta(days=90)


class _Use(NamedTuple):
    key_id: str
    hour: datetime
    actor: str
    operation: str
    outcome: str


@dataclass(slots=True)
class _Count:
    count: int
    last_at: datetime
    resource_id: str
    source_ip: str


class UsageLog:
    """The uses that this process has not written yet."""

    def __init__(self) -> None:
        """Nothing."""
        self._lock = threading.Lock()
        self._waiting: dict[Engine, dict[_Use, _Count]] = {}
        self._timer: threading.Timer | None = None

    def note(self, engine: Engine, use: _Use, count: _Count) -> None:
        """Count one more; it is written within a few seconds."""
        with self._lock:
            counts = self._waiting.setdefault(engine, {})
            if (known := counts.get(use)) is not None:
                count.count += known.count
            counts[use] = count
            if self._timer is None:
                self._timer = threading.Timer(DELAY_S, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Write what waits; not within a transaction, since this is one of its own."""
        for engine, counts in self.forget().items():
            try:
                with Session(engine) as session, transaction(session):
                    _write(session, counts)
            except SQLAlchemyError:
                log.warning("uses of keys could not be written", exc_info=True)

    def forget(self) -> Mapping[Engine, Mapping[_Use, _Count]]:
        """Take what waits out of memory."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return waiting


USAGE_LOG = UsageLog()
atexit.register(USAGE_LOG.flush)


def note_use(ctx: Context, key_id: str, operation: str, *, resource_id: str = "", outcome: str = "success") -> None:
    """Count a use of a key by whoever acts; `operation` is encrypt, decrypt, generate_data_key, re_encrypt."""
    moment = now()
    use = _Use(key_id, moment.replace(minute=0, second=0, microsecond=0), ctx.principal.username, operation, outcome)
    USAGE_LOG.note(ctx.db.get_bind().engine, use, _Count(1, moment, resource_id[:128], ctx.source_ip))


def note_system_use(session: Session, key_id: str, operation: str, resource_id: str) -> None:
    """Count a use of a key by the portal itself, for a disk that a machine opens."""
    moment = now()
    use = _Use(key_id, moment.replace(minute=0, second=0, microsecond=0), SYSTEM.username, operation, "success")
    USAGE_LOG.note(session.get_bind().engine, use, _Count(1, moment, resource_id[:128], ""))


def _write(session: Session, counts: Mapping[_Use, _Count]) -> None:
    for use, found in sorted(counts.items()):
        said = {"last_at": found.last_at, "resource_id": found.resource_id, "source_ip": found.source_ip}
        new = insert_of(session)(KeyUsage).values(**use._asdict(), count=found.count, **said)
        key = ["key_id", "hour", "actor", "operation", "outcome"]
        session.execute(new.on_conflict_do_update(index_elements=key, set_={"count": KeyUsage.count + found.count, **said}))
    used: dict[str, int] = {}
    for use, found in counts.items():
        used[use.key_id] = used.get(use.key_id, 0) + found.count
    for key_id in sorted(used):
        session.execute(
            update(EncryptionKey).where(EncryptionKey.id == key_id).values(operations_count=EncryptionKey.operations_count + used[key_id])
        )
