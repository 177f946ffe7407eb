"""Entries of the audit log as the database driver gives them, and their hashes, without objects in between: for reading millions of them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from typing import Any

from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import Session

from portal.kernel.audit import HASHED, AuditEntry

BATCH = 5000
# The order of the keys in the canonical JSON that is hashed.
FIELDS = tuple(sorted((*HASHED, "timestamp")))
SEQ, DETAILS, PREVIOUS, LOG_ID, TIMESTAMP = (FIELDS.index(name) for name in ("seq", "details", "previous_hash", "log_id", "timestamp"))
HASH = len(FIELDS)
# What json.loads and json.dumps(sort_keys=True, separators=(",", ":"), ensure_ascii=False) come down to, made once and not for each entry.
_scan, _q = json.JSONDecoder().scan_once, encode_basestring  # type: ignore[attr-defined]
_dump: Callable[[object, int], Iterable[str]] = c_make_encoder(None, None, _q, None, ":", ",", True, False, True)
Line = Sequence[Any]


def lines_after(session: Session, seq: int, *, until: int | None = None, most: int | None = None) -> Iterator[Line]:
    """Columns of the entries after a number, in `FIELDS` order with the hash behind them; `details` and `timestamp` are text."""
    return chain.from_iterable(_read(session, seq, until, most))


def _read(session: Session, seq: int, until: int | None, most: int | None) -> Iterator[list[Line]]:
    columns = [getattr(AuditEntry, name) for name in FIELDS]
    if session.get_bind().dialect.name == "postgresql":
        columns[DETAILS] = cast(AuditEntry.details, Text)
        # As SQLite keeps it: making a moment of each would cost a tenth of everything.
        columns[TIMESTAMP] = func.to_char(func.timezone("UTC", AuditEntry.timestamp), "YYYY-MM-DD HH24:MI:SS.US")
    statement = select(*columns, AuditEntry.entry_hash).where(AuditEntry.seq > seq).order_by(AuditEntry.seq).limit(most)
    if until is not None:
        statement = statement.where(AuditEntry.seq <= until)
    sql = str(statement.compile(session.get_bind(), compile_kwargs={"literal_binds": True}))
    driver: Any = session.connection().connection
    # The driver's own cursor: a row object for each entry and a conversion of each column would cost more than the hash.
    if session.get_bind().dialect.name == "sqlite":
        return _batches(driver.cursor(), sql)
    # The server makes the next batch while this one is hashed.
    return _ahead(_batches(driver.cursor(name="audit_lines"), sql))


def _batches(cursor: Any, sql: str) -> Iterator[list[Line]]:
    with closing(cursor):
        cursor.execute(sql)
        while batch := cursor.fetchmany(BATCH):
            yield batch


def _ahead(batches: Iterator[list[Line]]) -> Iterator[list[Line]]:
    with ThreadPoolExecutor(1, "audit-lines") as pool:
        following = pool.submit(next, batches, None)
        try:
            while batch := following.result():
                following = pool.submit(next, batches, None)
                yield batch
        finally:
            following.exception()
            pool.submit(batches.close)  # type: ignore[attr-defined]


def is_whole(line: Line) -> bool:
    """Whether an entry has the hash that it must have. SQLite keeps details as they are hashed; elsewhere, and in old entries, they are parsed first."""
    try:
        details: str = line[DETAILS]
        if '": ' not in details and hash_of(line, details) == line[HASH]:
            return True
        content, end = _scan(details, 0)
        return bool(end == len(details) and hash_of(line, "".join(_dump(content, 0))) == line[HASH])
    except (ValueError, TypeError, StopIteration, RecursionError):
        return False


def hash_of(line: Line, details: str) -> str:
    """The hash that an entry must have whose details are this canonical JSON."""
    # Written out because it runs for each of millions of entries; a test compares it with `audit.digest`.
    (action, credential, _, error, log_id, previous, project, request, resource, name, kind, seq, source, address, status, _, agent, user,
     username) = line[:HASH]  # fmt: skip
    text = (
        f'{{"action":{_q(action)},"credential":{_q(credential)},"details":{details},"error_message":{_q(error)},"log_id":{_q(log_id)},'
        f'"previous_hash":{_q(previous)},"project_id":{"null" if project is None else _q(project)},"request_id":{_q(request)},"resource_id":{_q(resource)},'
        f'"resource_name":{_q(name)},"resource_type":{_q(kind)},"seq":{seq},"source":{_q(source)},"source_ip":{_q(address)},"status":{_q(status)},'
        f'"timestamp":"{moment_of(line)}","user_agent":{_q(agent)},"user_id":{"null" if user is None else _q(user)},"username":{_q(username)}}}'
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def moment_of(line: Line) -> str:
    """When it was written, in ISO 8601 as it is hashed."""
    at = line[TIMESTAMP]
    return f"{at[:10]}T{at[11:19]}{'' if at[19:] in ('', '.000000') else at[19:]}+00:00"


def entry_of(line: Line) -> dict[str, object]:
    """An entry as receivers and archives get it: all of its fields, the hash included."""
    found = dict(zip(FIELDS, line, strict=False))
    details: object = json.loads(line[DETAILS])
    return {"seq": line[SEQ], **found, FIELDS[DETAILS]: details, FIELDS[TIMESTAMP]: moment_of(line), "entry_hash": line[HASH]}
