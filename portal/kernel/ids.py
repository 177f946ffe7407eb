"""Ids that say what they name: a type's prefix and 12 random hex digits; and which texts can be kept at all."""

import re
import secrets

ID_PATTERN = re.compile(r"[a-z][a-z0-9]{0,15}(-[a-z0-9]+){1,8}")


def is_storable(text: str) -> bool:
    """Whether both databases can take the text: PostgreSQL keeps no null character, and a lone surrogate is no character at all."""
    return "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def storable(text: str) -> str:
    """The text with what no database keeps replaced, for records of what was asked."""
    return text if is_storable(text) else text.replace("\x00", "\ufffd").encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def new_id(prefix: str) -> str:
    """A fresh id such as `i-3f9a0c55d1e7`."""
    return f"{prefix}-{secrets.token_hex(6)}"


def hostname(name: str) -> str:
    """What a guest is called: the instance's name, as far as a host may be called that."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-") or "instance"
