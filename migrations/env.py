"""Runs migrations on the engine that the portal hands over; `portal migrate` is the way in."""

from alembic import context
from sqlalchemy import JSON, text

import portal.catalogue
import portal.compute.metrics
import portal.identity.oauth2.models
import portal.identity.sso
import portal.kernel.audit_archives
import portal.kernel.audit_checkpoints
import portal.kernel.audit_export
import portal.kernel.audit_streams
import portal.kernel.audit_verifications
import portal.kernel.capabilities
import portal.kernel.quota_history
import portal.kernel.quota_requests
import portal.storage.metrics
import portal.storage.tiers  # noqa: F401 - all tables must be known
from portal.kernel.db import Base, UtcDateTime

LOCK = 7_201_844  # any number that nothing else in the database locks


def render(kind, item, autogen_context):
    """A migration is frozen: it must not change when the portal's own types do."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, JSON):
        autogen_context.imports.add("from sqlalchemy.dialects.postgresql import JSONB")
        return 'sa.JSON().with_variant(JSONB(), "postgresql")'
    return False


with context.config.attributes["engine"].execution_options(portal_write=True).begin() as connection:
    if connection.dialect.name == "postgresql":
        # Two replicas that start at once migrate one after the other.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
    context.configure(
        connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True, render_item=render, transactional_ddl=True
    )
    context.run_migrations()
