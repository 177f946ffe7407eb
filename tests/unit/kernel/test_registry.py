"""The registry refuses at start-up what a resource type forgot to say."""

from dataclasses import replace

import pytest

from portal.catalogue import PERMISSIONS
from portal.compute.instances import INSTANCE
from portal.kernel.declare import Effect
from portal.kernel.resource import Registry


def test_a_type_whose_rows_nothing_removes_is_refused() -> None:
    kept = [op for op in INSTANCE.operations if op.effect is not Effect.REMOVE]
    with pytest.raises(TypeError, match="projects with one could not be deleted"):
        Registry([replace(INSTANCE, operations=kept)], PERMISSIONS)


def test_what_forbids_an_operation_is_a_yes_or_no_field() -> None:
    ops = [replace(op, unless="name") if op.verb == "terminate" else op for op in INSTANCE.operations]
    with pytest.raises(TypeError, match="name is no yes-or-no field"):
        Registry([replace(INSTANCE, operations=ops)], PERMISSIONS)
