"""What decisions and lists cost a user who holds 1,000 statements, and what it costs to compile them.

`python -m bench.bench_policy`. First statements of every kind, spread over the actions and then all on the same ones; then 1,000 statements of one
kind each, all on one action, none of which applies, so that nothing is found early: the last two are the worst that are known.
"""

import random
import statistics
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from portal.catalogue import build_registry
from portal.compute.instances import Instance
from portal.kernel.authz import Access
from portal.kernel.context import Grant
from portal.kernel.db import Base
from portal.kernel.policy import Asked, Target
from portal.kernel.policy_documents import VERSION, statements_in

STATEMENTS, PER_POLICY, ROUNDS = 1000, 50, 20_000
LIMIT_US = 50
CHANCE = random.Random(1)  # noqa: S311 - the same statements each time
AT = datetime(2026, 11, 1, tzinfo=UTC)
ASKED = Asked("usr-1", "maria", True, "session", "10.1.2.3", AT, {"env": "test"}, {"count": 1})
READ = "compute.instance.read"


def main() -> None:
    """Measure and print."""
    permissions = build_registry().permissions
    actions = sorted(permissions)
    print(f"{STATEMENTS:,} statements, microseconds for a decision (aim: mean {LIMIT_US}), milliseconds for a list of instances: first, then each")
    for name, given in (("two actions each", None), ("Action *", "*"), ("compute.instance.*", "compute.instance.*")):
        _measure(f"mixed, {name}", [_statement(number, given or CHANCE.sample(actions, 2)) for number in range(STATEMENTS)], permissions, actions)
    for name, kind in KINDS.items():
        _measure(name, [{"Action": "*", "Resource": "*", "Effect": "Deny", **kind(number)} for number in range(STATEMENTS)], permissions, [READ])


def _measure(name: str, statements: list[dict[str, Any]], permissions: Mapping[str, str], actions: list[str]) -> None:
    parts = [statements[place : place + PER_POLICY] for place in range(0, STATEMENTS, PER_POLICY)]
    documents = [[{**each, "Sid": f"S{number}"} for number, each in enumerate(part)] for part in parts]
    grants = [Grant(f"pol-{n}", None, statements=statements_in({"Version": VERSION, "Statement": each})) for n, each in enumerate(documents)]
    access = Access([Grant("viewer", None), *grants], ())
    targets = [(CHANCE.choice(actions), Target("prj-1", "usr-1", id=f"i-{n}", name=f"web-{n}", tags={"env": f"e{n % 9}"})) for n in range(1000)]
    began = time.perf_counter()
    for action in actions:
        access.of(action, permissions[action])[0].decide(targets[0][1], ASKED)
    compiled_ms = (time.perf_counter() - began) * 1000
    costs = []
    for number in range(ROUNDS):
        action, target = targets[number % len(targets)]
        began = time.perf_counter()
        access.of(action, permissions[action])[0].decide(target, ASKED)
        costs.append((time.perf_counter() - began) * 1e6)
    costs.sort()
    first_ms, *next_ms = _lists(access, permissions)
    print(
        f"{name:32} mean {statistics.mean(costs):6.1f}  p50 {costs[len(costs) // 2]:6.1f}  p99 {costs[len(costs) * 99 // 100]:6.1f}"
        f"  compiled in {compiled_ms:4.0f} ms for {len(actions):2} actions  list {first_ms:6.1f}, {statistics.mean(next_ms):6.1f}"
    )


def _lists(access: Access, permissions: Mapping[str, str]) -> list[float]:
    engine, costs = create_engine("sqlite://"), []
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for _ in range(4):
            began = time.perf_counter()
            where = access.of(READ, permissions[READ])[0].where(Instance.facts(), ASKED)
            session.execute(select(Instance.id).where(where).limit(50)).all()
            costs.append((time.perf_counter() - began) * 1000)
    engine.dispose()
    return costs


def _statement(number: int, actions: str | list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"Effect": CHANCE.choice(("Allow", "Allow", "Deny")), "Action": actions, "Resource": "*"}
    kind = number % 5
    if kind == 0:
        found["Resource"] = [f"compute.instance/i-{CHANCE.randrange(5000)}" for _ in range(3)]
    elif kind == 1:
        found["Resource"] = f"compute.*/x{CHANCE.randrange(5000)}*"
    elif kind == 2:
        found["Condition"] = {"StringEquals": {"resource.tag/env": [f"x{CHANCE.randrange(9)}", "y"]}}
    elif kind == 3:
        found["Condition"] = {"IpAddress": {"request.ip": "192.168.0.0/16"}, "Bool": {"principal.mfa": True}}
    else:
        found["Condition"] = {"DateLessThan": {"request.time": "2020-01-01"}, "StringLike": {"resource.name": "db-*"}}
    return found


def _only(operator: str, key: str, *values: str) -> dict[str, Any]:
    return {"Condition": {operator: {key: list(values)}}}


def _values(number: int) -> dict[str, Any]:
    return _only("StringEquals", "resource.name", *(f"{number:x}.{value}" for value in range(90)))


def _two(number: int) -> dict[str, Any]:
    return {"Condition": {"StringEquals": {"resource.name": f"x{number}", "resource.tag/env": f"y{number}"}}}


KINDS = {
    "ids": lambda n: {"Resource": [f"compute.instance/i-x{n}"]},
    "names, 90 each": _values,
    "beginnings of names": lambda n: _only("StringLike", "resource.name", f"x{n}*"),
    "endings of names": lambda n: _only("StringLike", "resource.name", f"*x{n}"),
    "keys of tags": lambda n: _only("StringEquals", f"resource.tag/t{n}", "x"),
    "networks": lambda n: _only("IpAddress", "request.ip", f"10.{100 + n // 250}.{n % 250}.0/24"),
    "name and tag": _two,
    "dates": lambda n: _only("DateLessThan", "request.time", (AT - timedelta(minutes=n + 1)).isoformat()),
    "the user's name with a suffix": lambda n: _only("StringEquals", "resource.name", "${principal.name}" + f".{n}"),
    "parts of names": lambda n: _only("StringLike", "resource.name", f"*x{n}*"),
    "numbers": lambda n: _only("NumericGreaterThan", "request.input/count", str(n + 2)),
    "a beginning and a part": lambda n: _only("StringLike", "resource.name", f"web*x{n}*"),
}  # fmt: skip


if __name__ == "__main__":
    main()
