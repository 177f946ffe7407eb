"""Wrapping again what older keys wrapped: data keys by the newest version of their key, versions of keys by the first master key.

Both go in rounds, each a transaction of its own: whatever ends one of them, the next begins where it stopped.
"""

from collections.abc import Callable

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from portal.kernel.db import transaction
from portal.kernel.runner import StepRun
from portal.security.key_models import KeyVersion
from portal.security.key_store import HOLDERS, Holder, rewrap, version_rewrap
from portal.security.master_keys import master_keys
from portal.settings import Settings

ROUND = 200


def rewrap_data_keys(run: StepRun) -> None:
    """Wrap what older versions of the key have wrapped by its newest."""
    done = {each.label: _rewrap_of(run.sessions, run.settings, each, run.row.id) for each in HOLDERS}
    run.detail = ", ".join(f"{count:,} {label}" for label, count in done.items() if count) or "Nothing was wrapped by an older version."


def _rewrap_of(sessions: Callable[[], Session], settings: Settings, holder: Holder, key_id: str) -> int:
    """All rows of one table; how many there were."""
    count = 0
    while True:
        with sessions() as session, transaction(session):
            if not (done := _round(session, settings, holder, key_id)):
                return count
        count += done


def _round(session: Session, settings: Settings, holder: Holder, key_id: str) -> int:
    columns = holder.table.c
    newest = select(KeyVersion.number).where(KeyVersion.key_id == key_id).order_by(KeyVersion.number.desc()).limit(1).scalar_subquery()
    older = select(holder.table).where(columns[holder.key_id] == key_id, columns[holder.version] < newest).order_by(*holder.table.primary_key)
    rows = session.execute(older.limit(ROUND).with_for_update(of=holder.table, skip_locked=True)).all()
    # Those that others are at work on are taken one by one: who waits with nothing in hand is in nobody's way.
    rows = rows or session.execute(older.limit(1)).all()
    for row in rows:
        wrapped = getattr(row, holder.wrapped)
        made = rewrap(session, settings, wrapped, context=holder.context(row))
        is_it = [column == getattr(row, column.key) for column in holder.table.primary_key]
        # One that was replaced meanwhile keeps what it has.
        change = update(holder.table).where(*is_it, columns[holder.wrapped] == wrapped)
        session.execute(change.values({holder.wrapped: made.wrapped, holder.version: made.version}))
    return len(rows)


def rewrap_versions(session: Session, settings: Settings) -> int:
    """Wrap all versions of keys by the first master key; how many were not yet. Raises MasterKeyMissing."""
    masters, count = master_keys(settings), 0
    while True:
        with transaction(session):
            others = select(KeyVersion).where(KeyVersion.master != masters.first).order_by(KeyVersion.key_id, KeyVersion.number).limit(ROUND)
            versions = session.scalars(others.with_for_update()).all()
            for version in versions:
                version_rewrap(version, masters)
        if not versions:
            return count
        count += len(versions)
