"""What volumes and snapshots are encrypted with: a data key each, wrapped by a key of the project, which their whole chain of files shares."""

from portal.security.key_store import Holder, declare_holder
from portal.storage.volume_models import Snapshot, Volume

# Volumes and snapshots that begin as one another have the same data key: it is bound to what kind of data it encrypts.
PURPOSE = "storage.volume"

for _label, _model in (("volumes", Volume), ("snapshots", Snapshot)):
    declare_holder(Holder(_label, _model.__table__, "wrapped_key", "kms_key_id", "key_version", lambda _row: PURPOSE))  # type: ignore[arg-type] # a Table
