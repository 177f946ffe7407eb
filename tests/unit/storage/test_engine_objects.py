"""Objects on an external engine: what is under a bucket's name there is not touched before the portal has made the bucket."""

from dataclasses import replace
from typing import Any, cast

import pytest

from portal.engines.object_engine_ports import Key
from portal.kernel.context import SYSTEM, Context
from portal.kernel.errors import StateConflict
from portal.settings import ObjectsDriver, Settings
from portal.storage.engine_objects import EngineObjects
from portal.storage.listing import Listing
from portal.storage.presigning import presign
from tests.unit.storage.test_engine_policies import FACTS, REGISTRY


@pytest.mark.parametrize("state", ["creating", "error", "deleting"])
def test_a_bucket_that_was_not_made_is_not_touched(state: str) -> None:
    settings = Settings(engine_objects=ObjectsDriver.S3, s3_engine_endpoint="http://127.0.0.1:1", s3_engine_key_file="key")
    ctx = Context(cast("Any", None), settings, REGISTRY, SYSTEM)
    objects, bucket = EngineObjects(cast("Any", None)), replace(FACTS, state=state)
    for ask in (
        lambda: objects.listed(ctx, bucket, Listing()),
        lambda: objects.find(ctx, bucket, "k"),
        lambda: objects.delete(ctx, bucket, "k"),
        lambda: presign(ctx, "http://127.0.0.1:1", bucket, "k", method="GET", expires_in=60, signer=Key("id", "secret")),
    ):
        with pytest.raises(StateConflict):
            ask()
