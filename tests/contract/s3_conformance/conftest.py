"""What the conformance tests share: a bucket, and requests that are signed but otherwise as a test writes them."""

from typing import Any

import pytest

from tests.support.s3 import S3
from tests.support.s3_raw import Raw

BUCKET = "conforming"


@pytest.fixture
def raw(s3: S3) -> Raw:
    """Requests of a project admin."""
    owner = s3.people.user("project_admin")
    return Raw(s3.url, owner, *s3.key(owner))


@pytest.fixture
def bucket(raw: Raw) -> str:
    assert raw("PUT", f"/{BUCKET}").status == 200
    return BUCKET


@pytest.fixture
def opened(raw: Raw, bucket: str) -> str:
    """The same where lists of access count, and which may be everybody's."""
    rule = b"<OwnershipControls><Rule><ObjectOwnership>ObjectWriter</ObjectOwnership></Rule></OwnershipControls>"
    assert raw("PUT", f"/{bucket}", "ownershipControls", rule).status == 200
    assert raw("DELETE", f"/{bucket}", "publicAccessBlock").status == 204
    return bucket


@pytest.fixture
def boto(raw: Raw) -> Any:
    """boto3 with the same key."""
    return raw.boto()
