"""An audit log to do things to."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event
from sqlalchemy.orm import Session

from portal.kernel.audit import Subject, record
from portal.kernel.audit_watch import audit_checkpoint
from portal.kernel.context import Context
from portal.kernel.db import transaction
from tests.support.people import People


def write(ctx: Context, number: int) -> None:
    """One entry."""
    with transaction(ctx.db):
        record(ctx, "test.thing.do", Subject("test.thing", f"t-{number}", f"thing {number}"), details={"number": number})


def signed_log(people: People) -> Context:
    """Twelve entries with checkpoints at 4 and 8, written and signed by the portal itself."""
    ctx = people.context(None)
    for number in range(12):
        write(ctx, number)
        if number in {3, 7}:
            assert audit_checkpoint(ctx).broken_seq is None
    return ctx


@contextmanager
def statements(session: Session) -> Iterator[list[str]]:
    """What the database is asked meanwhile."""
    said: list[str] = []

    def listen(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        said.append(" ".join(statement.split()))

    event.listen(session.get_bind(), "before_cursor_execute", listen)
    yield said
    event.remove(session.get_bind(), "before_cursor_execute", listen)
