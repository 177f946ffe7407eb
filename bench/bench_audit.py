"""What the audit log costs with ten million entries: pages for each filter, and verification of the whole chain.

`python -m bench.bench_audit [ENTRIES] [sqlite|postgresql]`; files go to a temporary directory. The chain is a real one, so that it can be verified.
"""

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from portal.catalogue import build_registry
from portal.kernel.audit import GENESIS, AuditEntry, canonical
from portal.kernel.audit_lines import FIELDS, HASH, hash_of
from portal.kernel.audit_query import AuditQuery, audit_entries
from portal.kernel.audit_verify import verify
from portal.kernel.context import Context
from portal.kernel.db import open_database
from tests.support.databases import fill, settings_for
from tests.support.people import People
from tests.support.servers import Postgres

ENTRIES, ROUNDS, BATCH = 10_000_000, 40, 20_000
USERS, RESOURCES, PROJECTS = 2000, 200_000, 50
VERBS = ("create", "start", "stop", "update", "resize", "delete", "lock", "unlock", "reboot", "rebuild")
TYPES = ("compute.instance", "compute.image", "compute.key_pair", "security.policy", "storage.volume", "networking.vpc")
CHANCE = random.Random(1)  # noqa: S311 - the same entries each time
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def rows(count: int, projects: list[str]) -> Iterator[list[Any]]:
    """A chain as operations would have written it, in the order of `FIELDS` with the hash behind."""
    previous = GENESIS
    for seq in range(1, count + 1):
        user, resource = CHANCE.randrange(USERS), CHANCE.randrange(RESOURCES)
        kind, verb = TYPES[resource % len(TYPES)], VERBS[seq % len(VERBS)]
        status = "success" if seq % 20 else "denied" if seq % 40 else "failure"
        details = canonical({"before": {"state": "running"}, "after": {"state": "stopping"}, "input": {}, "job_id": f"job-{seq:012x}"})
        at = BEGAN + timedelta(seconds=seq)
        line: list[Any] = [
            f"{kind}.{verb}", f"token:tok-{user:012x}", details, "" if status == "success" else "not allowed", f"audit-{seq:012x}", previous,
            projects[resource % len(projects)], f"req-{seq // 3:016x}", f"r-{resource:012x}", f"name-{resource}", kind, seq, "api",
            f"10.{user % 200}.{user // 200}.7", status, f"{at:%Y-%m-%d %H:%M:%S}.000000", "curl/8.5", f"usr-{user:012x}", f"user-{user}",
        ]  # fmt: skip
        previous = hash_of(line, details)
        line.append(previous)
        yield line


def populate(session: Session, count: int, projects: list[str]) -> None:
    """Without indexes first: making them at the end is much quicker."""
    indexes = {index.name: index for index in AuditEntry.__table__.indexes}  # type: ignore[attr-defined]
    connection = session.connection(execution_options={"portal_write": True})
    for index in indexes.values():
        index.drop(connection)
    driver, made, last = connection.connection, rows(count, projects), GENESIS
    names = ", ".join((*FIELDS, "entry_hash"))
    cursor = driver.cursor()
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * (HASH + 1))
        while batch := [line for _, line in zip(range(BATCH), made, strict=False)]:
            cursor.executemany(f"INSERT INTO audit_entries ({names}) VALUES ({marks})", batch)  # noqa: S608 - names of our own
            last = batch[-1][HASH]
    else:
        with cursor.copy(f"COPY audit_entries ({names}) FROM STDIN") as copy:  # type: ignore[attr-defined]
            for line in made:
                line[FIELDS.index("timestamp")] += "+00"
                copy.write_row(line)
                last = line[HASH]
    session.execute(text("UPDATE audit_head SET seq = :seq, hash = :hash"), {"seq": count, "hash": last})
    for index in indexes.values():
        index.create(connection)
    session.commit()
    if connection.dialect.name == "postgresql":
        session.execute(text("ANALYZE audit_entries"))
        session.commit()


def measure(ctx: Context, name: str, query: AuditQuery) -> None:
    """p50 and p95 of a page of 50, in milliseconds."""
    costs, found = [], 0
    for _ in range(ROUNDS):
        began = time.perf_counter()
        found = len(audit_entries(ctx, query).entries)
        costs.append((time.perf_counter() - began) * 1000)
        ctx.db.rollback()
    costs.sort()
    print(f"  {name:34} {found:3} entries  p50 {costs[ROUNDS // 2]:8.2f} ms  p95 {costs[ROUNDS * 95 // 100]:8.2f} ms", flush=True)


def questions(count: int, project_id: str) -> dict[str, AuditQuery]:
    """Each filter, with values that many, few or no entries have."""
    middle = BEGAN + timedelta(seconds=count // 2)
    plain: dict[str, dict[str, Any]] = {
        "first page": {}, "deep page (in the middle)": {"before_seq": count // 2}, "last page": {"before_seq": 60}, "user id": {"user_id": "usr-000000000007"},
        "user name": {"username": "user-7"}, "credential": {"credential": "token:tok-000000000007"}, "action": {"action": "compute.image.delete"},
        "action prefix": {"action": "storage.*"}, "action prefix without a match": {"action": "nothing.*"}, "type": {"resource_type": "storage.volume"},
        "resource": {"resource_id": "r-00000000002a"}, "outcome": {"status": "denied"}, "outcome, deep": {"status": "failure", "before_seq": count // 3},
        "address": {"source_ip": "10.7.0.7"}, "project": {"project_id": project_id}, "request": {"request_id": f"req-{count // 6:016x}"},
        "one hour in the middle": {"since": middle, "until": middle + timedelta(hours=1)}, "search: name": {"search": "name-77"},
        "search: part of an action": {"search": "resize"}, "search without a match": {"search": "nothing like it"},
        "user and outcome": {"user_id": "usr-000000000007", "status": "denied"}, "project and outcome": {"project_id": project_id, "status": "failure"},
    }  # fmt: skip
    return {name: AuditQuery(**values) for name, values in plain.items()}


def run(url: str, directory: Path, count: int) -> None:
    """Fill, ask, verify."""
    fill(url, directory)
    settings = settings_for(directory, database_url=url)
    sessions = open_database(settings)
    people = People(sessions, settings, build_registry())
    projects = [people.project_id, *(people.project() for _ in range(PROJECTS - 1))]
    began = time.perf_counter()
    with sessions() as session:
        populate(session, count, projects)
    print(f"{count:,} entries written and indexed in {time.perf_counter() - began:.0f} s", flush=True)
    auditor, admin = people.context(people.user("auditor")), people.context(people.user("project_admin"))
    for who, ctx in (("an auditor, who reads everything", auditor), ("a project admin, who reads one project of 50", admin)):
        print(f" as {who}:")
        for name, query in questions(count, projects[0]).items():
            measure(ctx, name, replace(query, limit=50))
    people.close()
    began, began_cpu = time.perf_counter(), time.process_time()
    with sessions() as session:
        verdict = verify(session)
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    print(f" verified {verdict.entries:,} entries in {seconds:.1f} s: {verdict.entries / seconds:,.0f} per second, "
          f"{verdict.entries / cpu:,.0f} per second of one core {verdict.problem}", flush=True)  # fmt: skip
    sessions.kw["bind"].dispose()


def main() -> None:
    """Measure and print."""
    given = sys.argv[1:]
    count = next((int(each) for each in given if each.isdigit()), 200_000 if not given else ENTRIES)
    for kind in [each for each in ("sqlite", "postgresql") if each in given] or ["sqlite", "postgresql"]:
        print(f"{kind}:")
        with tempfile.TemporaryDirectory() as home:
            if kind == "sqlite":
                run(f"sqlite:///{home}/portal.db", Path(home), count)
            else:
                server = Postgres()
                server.start()
                try:
                    server.execute("CREATE DATABASE bench")
                    run(server.url("bench"), Path(home), count)
                finally:
                    server.close()


if __name__ == "__main__":
    main()
