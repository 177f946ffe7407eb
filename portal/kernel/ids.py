"""Ids that say what they name: a type's prefix and 12 random hex digits."""

import re
import secrets

ID_PATTERN = re.compile(r"[a-z][a-z0-9]{0,15}(-[a-z0-9]+){1,8}")


def new_id(prefix: str) -> str:
    """A fresh id such as `i-3f9a0c55d1e7`."""
    return f"{prefix}-{secrets.token_hex(6)}"
