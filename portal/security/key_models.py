"""Tables of encryption keys: the keys of projects, their versions, and who used them."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, text
from sqlalchemy.orm import Mapped, mapped_column

from portal.kernel import fields as f
from portal.kernel.db import Base, UtcDateTime, now
from portal.kernel.quota import Dimension, declare
from portal.kernel.resource import ProjectOwned, Stateful

ENCRYPTION_KEYS = declare(Dimension("encryption_keys", "Encryption keys", "", 100))
KEY_TYPES = ("symmetric",)
ALGORITHM = "AES_256"
MOST_VERSIONS = 1_000_000
DEFAULT = text("is_default AND deleted_at IS NULL")


class EncryptionKey(ProjectOwned, Stateful, Base):
    """A key of a project that data is encrypted with; what it consists of never leaves the portal."""

    __tablename__ = "encryption_keys"

    key_type: Mapped[str] = f.field(f.Choice(KEY_TYPES), label="Type", default="symmetric", filterable=True)
    algorithm: Mapped[str] = f.field(f.Line(32), label="Algorithm", default=ALGORITHM)
    is_default: Mapped[bool] = f.field(
        f.Bool(), label="Default", default=False, filterable=True, help="The portal made it, for what is encrypted without naming a key."
    )
    current_version: Mapped[int] = f.field(f.Int(1, MOST_VERSIONS), label="Newest version", default=1)
    rotation_enabled: Mapped[bool] = f.field(
        f.Bool(), label="Rotate automatically", default=True, editable=True, help="Make a new version whenever the period is over."
    )
    rotation_period_days: Mapped[int] = f.field(f.Int(1, 3650), label="Rotation period", unit="days", default=365, editable=True)
    last_rotated_at: Mapped[datetime | None] = f.field(f.Moment(), label="Rotated", nullable=True)
    next_rotation_at: Mapped[datetime | None] = f.field(f.Moment(), label="Next rotation", nullable=True, index=True)
    deletion_date: Mapped[datetime | None] = f.field(f.Moment(), label="Deleted for good", nullable=True, index=True)
    operations_count: Mapped[int] = f.field(f.Int(0, 2**62), label="Uses", default=0)


Index("uq_encryption_keys_default", EncryptionKey.project_id, unique=True, sqlite_where=DEFAULT, postgresql_where=DEFAULT)


class KeyVersion(Base):
    """What a key consisted of since a rotation, wrapped by a master key; erased when the key is deleted."""

    __tablename__ = "encryption_key_versions"

    key_id: Mapped[str] = mapped_column(ForeignKey("encryption_keys.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    material: Mapped[bytes] = mapped_column(LargeBinary)
    master: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime(), default=now)
    created_by: Mapped[str] = mapped_column(String(255), default="")
    # created, manual or automatic.
    origin: Mapped[str] = mapped_column(String(16))

    def __repr__(self) -> str:
        """Without what it consists of."""
        return f"KeyVersion({self.key_id!r}, {self.number!r})"


class KeyUsage(Base):
    """How often somebody used a key for something within an hour: a row for each hour, not for each use."""

    __tablename__ = "encryption_key_usage"

    # No reference: uses are written a moment later, and the key may be gone by then.
    key_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    hour: Mapped[datetime] = mapped_column(UtcDateTime(), primary_key=True, index=True)
    actor: Mapped[str] = mapped_column(String(255), primary_key=True)
    operation: Mapped[str] = mapped_column(String(32), primary_key=True)
    outcome: Mapped[str] = mapped_column(String(16), primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger, default=0)
    last_at: Mapped[datetime] = mapped_column(UtcDateTime())
    # What it was used for last.
    resource_id: Mapped[str] = mapped_column(String(128), default="")
    source_ip: Mapped[str] = mapped_column(String(64), default="")
