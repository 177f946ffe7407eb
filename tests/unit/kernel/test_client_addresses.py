"""Addresses of clients, in the form that rules about networks are written in."""

import pytest

from portal.kernel.addresses import canonical


@pytest.mark.parametrize(
    ("told", "found"),
    [("192.0.2.1", "192.0.2.1"), ("::ffff:10.1.2.3", "10.1.2.3"), ("2001:DB8::0:1", "2001:db8::1"), ("", ""), ("unix:", ""), ("10.0.0.1:80", "")],
)
def test_an_address_has_one_form(told: str, found: str) -> None:
    assert canonical(told) == found
