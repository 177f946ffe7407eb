"""Checksums: known values, parts put together, and what is refused."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.s3.checksums import CRCS, Algorithm, Checksum, Kind, algorithm_named, composite, full_object, hasher, kind_for, parse_checksum
from portal.s3.errors import S3Error
from tests.support.s3_wire import SAME_EACH_TIME

# The check values of the catalogue of CRCs, and of the standards of the others.
CHECK = {
    Algorithm.CRC32: "cbf43926",
    Algorithm.CRC32C: "e3069283",
    Algorithm.CRC64NVME: "ae8b14860a799888",
    Algorithm.SHA1: "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    Algorithm.SHA256: "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
}


def calculated(algorithm, *blocks):
    one = hasher(algorithm)
    for block in blocks:
        one.update(block)
    return Checksum(algorithm, one.digest())


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_known_values(algorithm):
    assert calculated(algorithm, b"1234", memoryview(b"x56789")[1:]).digest.hex() == CHECK[algorithm]
    assert algorithm_named(algorithm.lower()) is algorithm
    text = calculated(algorithm, b"123456789").text
    assert parse_checksum(algorithm, text) == Checksum(algorithm, bytes.fromhex(CHECK[algorithm]))


@SAME_EACH_TIME
@given(st.sampled_from(list(CRCS)), st.lists(st.binary(max_size=200), min_size=1, max_size=6))
def test_the_checksums_of_parts_make_that_of_the_whole(algorithm, parts):
    assert full_object([(calculated(algorithm, part), len(part)) for part in parts]) == calculated(algorithm, b"".join(parts))


def test_the_checksum_of_checksums():
    parts = [calculated(Algorithm.SHA256, part) for part in (b"one", b"two")]
    whole = hashlib.sha256(hashlib.sha256(b"one").digest() + hashlib.sha256(b"two").digest()).digest()
    assert composite(parts) == base64.b64encode(whole).decode() + "-2"


def test_what_an_algorithm_can_say_of_an_object_in_parts():
    assert [kind_for(one, "") for one in Algorithm] == [Kind.COMPOSITE, Kind.COMPOSITE, Kind.FULL_OBJECT, Kind.COMPOSITE, Kind.COMPOSITE]
    assert kind_for(Algorithm.CRC32, "full_object") is Kind.FULL_OBJECT
    assert kind_for(Algorithm.SHA1, "COMPOSITE") is Kind.COMPOSITE
    for algorithm, text in ((Algorithm.SHA1, "FULL_OBJECT"), (Algorithm.CRC64NVME, "COMPOSITE"), (Algorithm.CRC32, "ELSE")):
        with pytest.raises(S3Error, match="InvalidRequest"):
            kind_for(algorithm, text)


def test_what_is_no_checksum():
    for text in ("", "é", "AAAA", "AAAAA===", "AAAAAA==\n", "AAAAAAAAAAA="):
        with pytest.raises(S3Error, match="InvalidRequest"):
            parse_checksum(Algorithm.CRC32, text)
    with pytest.raises(S3Error, match="CRC64NVME, SHA1"):
        algorithm_named("MD4")
