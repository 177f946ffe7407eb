"""Tags, a second time: one row per key and value, so that a list can be filtered by them at any size."""

from typing import Any

from sqlalchemy import Index, String, delete
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel.db import Base


class ResourceTag(Base):
    """One tag of one resource."""

    __tablename__ = "resource_tags"

    resource_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))
    resource_type: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        Index("ix_resource_tags_search", "key", "value", "resource_id"),
        Index("ix_resource_tags_project", "project_id", "key", "value"),
    )


def store(session: Session, type_key: str, row: Any) -> None:
    """Write the row's tags, in place of those it had."""
    drop(session, row.id)
    session.add_all(ResourceTag(resource_id=row.id, key=k, value=v, resource_type=type_key, project_id=row.project_of()) for k, v in row.tags.items())
    session.flush()


def drop(session: Session, resource_id: str) -> None:
    """Forget the tags of a resource, whose record goes, or which gets others."""
    session.execute(delete(ResourceTag).where(ResourceTag.resource_id == resource_id))
