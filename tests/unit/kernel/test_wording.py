"""Labels in the middle of sentences."""

import pytest

from portal.kernel.wording import within


@pytest.mark.parametrize(
    ("label", "text"), [("Key pair", "key pair"), ("VPC", "VPC"), ("VPCs", "VPCs"), ("NAT gateway", "NAT gateway"), ("Elastic IPs", "elastic IPs")]
)
def test_abbreviations_stay_what_they_are(label: str, text: str) -> None:
    assert within(label) == text
