"""What instances are called: each otherwise, whatever they are named."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from portal.networking.dns_names import LONGEST, labels


def test_who_is_called_exactly_so_has_the_name_and_others_get_a_number() -> None:
    told = [("i-1", "web.1"), ("i-2", "web 1"), ("i-3", "web-1"), ("i-4", "WEB-1"), ("i-5", "*"), ("i-6", "-"), ("i-7", "web-1-2")]
    assert labels(told) == {
        "i-1": "web-1-3", "i-2": "web-1-4", "i-3": "web-1", "i-4": "web-1-5", "i-5": "instance", "i-6": "instance-2", "i-7": "web-1-2",
    }  # fmt: skip
    assert labels([("i-1", "web.1"), ("i-2", "web 1")]) == {"i-1": "web-1", "i-2": "web-1-2"}


@settings(deadline=None)
@given(st.lists(st.one_of(st.text(max_size=5), st.text("aA-.", min_size=60, max_size=66)), max_size=30, unique=True))
def test_names_are_names_and_nobody_shares_one(names: list[str]) -> None:
    found = labels((str(number), name) for number, name in enumerate(names))
    assert len(set(found.values())) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", label) and len(label) <= LONGEST for label in found.values())
