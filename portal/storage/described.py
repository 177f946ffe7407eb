"""What may be said of an object besides its bytes, as far as it becomes headers of answers: for what the API and the console take in plain forms."""

import re
from collections.abc import Mapping

from portal.kernel.errors import InvalidRequest

NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
METADATA_BYTES = 2048
MOST_TAGS, TAG_NAME_MAX, TAG_VALUE_MAX = 10, 128, 256
TYPE_MAX = 255


def checked_metadata(given: Mapping[str, str]) -> dict[str, str]:
    """Metadata by names in small letters, as answers give them. Raises InvalidRequest."""
    found = {name.lower(): value for name, value in given.items()}
    if odd := [name for name in given if not NAME.fullmatch(name)]:
        raise InvalidRequest.fields({"metadata": [f"{odd[0][:80]!r} can be no name of a header: letters, digits and dashes can."]})
    if odd := [name for name, value in given.items() if not (value.isascii() and value.isprintable())]:
        raise InvalidRequest.fields({"metadata": [f"the value of {odd[0][:80]} has characters that no header carries: plain ASCII is."]})
    if sum(len(name) + len(value) for name, value in found.items()) > METADATA_BYTES:
        raise InvalidRequest.fields({"metadata": [f"may have {METADATA_BYTES:,} bytes in all."]})
    return found


def checked_tags(given: Mapping[str, str]) -> dict[str, str]:
    """Tags of an object. Raises InvalidRequest."""
    if len(given) > MOST_TAGS:
        raise InvalidRequest.fields({"tags": [f"an object has at most {MOST_TAGS} tags; these are {len(given)}."]})
    for name, value in given.items():
        if not 0 < len(name) <= TAG_NAME_MAX or len(value) > TAG_VALUE_MAX or "\x00" in name + value:
            raise InvalidRequest.fields(
                {"tags": [f"{name[:80]!r}: a tag has a name of 1 to {TAG_NAME_MAX} characters and a value of at most {TAG_VALUE_MAX}."]}
            )
    return dict(given)


def checked_type(given: str) -> str:
    """A content type. Raises InvalidRequest."""
    if len(given) > TYPE_MAX or not given.isascii() or (given and not given.isprintable()):
        raise InvalidRequest.fields({"content_type": ["must be a type such as text/plain."]})
    return given
