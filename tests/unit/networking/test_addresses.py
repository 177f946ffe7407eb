"""Addresses: what is refused and in which words; nothing overlaps, nothing is lost, what is released comes back exactly."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portal.networking import addresses as a


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.0.0.0/33", "/33; it goes from /0 to /32"), ("10.0.0.0/-1", "/-1"), ("10.0.0.0/", "prefix length"), ("10.0.0.5/16", "did you mean 10.0.0.0/16?"),
        ("fd00::/64", "IPv6"), ("10.0.0.0", "such as 10.0.0.0/16"), ("10.0.0/16", "such as"), ("10.0.0.256/16", "such as"), ("", "such as"),
        ("10.0.0.0/0xa", "prefix length"), ("10.0.0.0/16 ", "prefix length"), ("010.0.0.0/16", "such as"), ("10.0.0.0/15", "/15; from /16 (65,536 addresses) to /28 (16)"),
        ("10.0.0.0/29", "/29"), ("8.8.0.0/16", "not private"), ("172.32.0.0/16", "not private"), ("100.64.0.0/16", "not private"), ("10.0.0.0/١٦", "prefix length"),
    ],
)  # fmt: skip
def test_a_vpcs_range_that_is_refused_says_why(text: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        a.parse_vpc_range(text)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.1.0.0/24", "outside the VPC's range 10.0.0.0/16"),
        ("10.0.1.0/25", "overlaps the subnet 10.0.1.0/24; 10.0.0.0/25 is free"),
        ("10.0.0.0/16", "overlaps"),
    ],
)
def test_a_subnets_range_that_is_refused_says_why(text: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        a.parse_subnet_range(text, "10.0.0.0/16", ["10.0.1.0/24"])
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.0.2.9", "outside"), ("10.0.1.0", "network"), ("10.0.1.1", "router"), ("10.0.1.2", "name server"), ("10.0.1.3", "future use"), ("10.0.1.15", "broadcast"),
        ("::1", "IPv6"), ("10.0.1", "such as"), ("10.0.1.04", "such as"),
    ],
)  # fmt: skip
def test_an_address_that_nobody_can_have_says_why(text: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        a.check_address(text, "10.0.1.0/28")
    assert says in str(refused.value)


def test_the_figures_of_the_smallest_subnet() -> None:
    assert (a.usage("10.0.1.0/28", 3).usable, a.usage("10.0.1.0/28", 3).free) == (11, 8)
    assert list(a.candidates("10.0.1.0/28")) == [f"10.0.1.{n}" for n in range(4, 15)]


PREFIXES = st.integers(16, 28)


@st.composite
def _networks(draw: st.DrawFn) -> IPv4Network:
    length = draw(PREFIXES)
    return IPv4Network((draw(st.integers(0, 2**32 - 1)) >> (32 - length) << (32 - length), length))


@settings(deadline=None)
@given(_networks(), st.lists(st.integers(16, 28), max_size=12))
def test_free_ranges_never_overlap_and_none_is_overlooked(outer: IPv4Network, lengths: list[int]) -> None:
    taken: list[str] = []
    for length in lengths:
        found = a.free_range(str(outer), taken, length)
        possible = length >= outer.prefixlen and any(a.overlapping(each, taken) is None for each in _some(outer, length))
        assert (found is not None) == possible
        if found is not None:
            assert found.subnet_of(outer)
            assert a.overlapping(found, taken) is None
            taken.append(str(found))


def _some(outer: IPv4Network, length: int) -> list[IPv4Network]:
    return list(outer.subnets(new_prefix=length))
