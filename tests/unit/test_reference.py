"""Every setting, permission, error code, event and metric is documented: docs/reference is what the code says now."""

import pytest

from portal.reference import DIRECTORY, PAGES
from portal.settings import Settings


@pytest.mark.parametrize("name", PAGES)
def test_page_is_what_the_code_says(name: str) -> None:
    assert (DIRECTORY / name).read_text() == PAGES[name](), f"docs/reference/{name} is out of date: run `make docs`"


def test_every_setting_says_what_it_is_for() -> None:
    assert [name for name, info in Settings.model_fields.items() if not info.description] == []
