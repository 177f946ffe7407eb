"""Addresses of clients."""

import pytest

from portal.kernel.addresses import canonical


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("10.1.2.3", "10.1.2.3"),
        # What a socket for both protocols says of a client by IPv4.
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::FFFF:a01:203", "10.1.2.3"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("", ""),
        ("unknown", ""),
        ("010.1.2.3", ""),
    ],
)
def test_an_address_has_one_form(told: str, meant: str) -> None:
    assert canonical(told) == meant
