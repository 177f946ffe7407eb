"""What a decision costs a user who holds 1,000 statements, and what it costs to compile them.

`python -m bench.bench_policy`. The statements are of every kind: plain, with ids, with patterns, with conditions on tags, addresses and times.
"""

import random
import statistics
import time
from datetime import UTC, datetime

from portal.catalogue import build_registry
from portal.kernel.authz import Access
from portal.kernel.context import Grant
from portal.kernel.policy import Asked, Target
from portal.kernel.policy_documents import VERSION, parse

STATEMENTS, PER_POLICY, ROUNDS = 1000, 50, 20_000
LIMIT_US = 50
CHANCE = random.Random(1)  # noqa: S311 - the same statements each time


def main() -> None:
    """Measure and print."""
    permissions = build_registry().permissions
    actions = sorted(permissions)
    documents = [[_statement(number, actions) for number in range(PER_POLICY)] for _ in range(STATEMENTS // PER_POLICY)]
    began = time.perf_counter()
    grants = [Grant(f"pol-{n}", None, statements=parse({"Version": VERSION, "Statement": each}, permissions)) for n, each in enumerate(documents)]
    parsed_ms = (time.perf_counter() - began) * 1000
    access = Access(grants, ())
    began = time.perf_counter()
    for action in actions:
        access.of(action, permissions[action])
    compiled_ms = (time.perf_counter() - began) * 1000
    asked = Asked("usr-1", "maria", True, "session", "10.1.2.3", datetime.now(UTC), {"env": "test"}, {"count": 1})
    targets = [(CHANCE.choice(actions), Target("prj-1", "usr-1", id=f"i-{n}", name=f"web-{n}", tags={"env": f"e{n % 9}"})) for n in range(1000)]
    costs = []
    for number in range(ROUNDS):
        action, target = targets[number % len(targets)]
        began = time.perf_counter()
        access.of(action, permissions[action])[0].decide(target, asked)
        costs.append((time.perf_counter() - began) * 1e6)
    costs.sort()
    print(f"{STATEMENTS:,} statements, {len(actions)} actions: parsed in {parsed_ms:.0f} ms, compiled in {compiled_ms:.0f} ms, once")
    print(
        f"decision: mean {statistics.mean(costs):.1f} µs, p50 {costs[len(costs) // 2]:.1f} µs, p99 {costs[len(costs) * 99 // 100]:.1f} µs (aim: {LIMIT_US} µs)"
    )


def _statement(number: int, actions: list[str]) -> dict[str, object]:
    found: dict[str, object] = {
        "Sid": f"S{number}", "Effect": CHANCE.choice(("Allow", "Allow", "Deny")), "Action": CHANCE.sample(actions, 2), "Resource": "*",
    }  # fmt: skip
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


if __name__ == "__main__":
    main()
