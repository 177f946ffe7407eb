"""Which ids may become part of a path or of a name on the host; everything else is refused before it touches either."""

import re

from portal.engines.ports import EngineRefused

SAFE_ID = re.compile(r"[a-z][a-z0-9]{0,31}(-[a-z0-9]{1,32}){1,8}", re.ASCII)
MAX_ID_LENGTH = 64


def checked_id(identifier: str) -> str:
    """The id itself, if it can name a file and nothing else. Raises EngineRefused."""
    if len(identifier) > MAX_ID_LENGTH or SAFE_ID.fullmatch(identifier) is None:
        raise EngineRefused("This id is not one of the portal's.")
    return identifier
