"""Registries whose steps fail, repeat or die as a test wants; the portal itself has no hooks for that."""

import functools
from collections.abc import Callable
from dataclasses import replace

from portal.catalogue import PERMISSIONS, build_registry
from portal.kernel.declare import Operation, Step
from portal.kernel.resource import Registry
from portal.kernel.runner import StepRun

Do = Callable[[StepRun], None]
# (do or undo, position of the step, the function itself) -> what is called instead
Wrap = Callable[[str, int, Do], Do]


def sabotaged(operation: str, wrap: Wrap) -> Registry:
    """The registry of the portal with the steps of one operation wrapped."""
    types = []
    whole = build_registry()
    for rtype in whole:
        name = operation.removeprefix(f"{rtype.key}.")
        types.append(replace(rtype, operations=[_wrapped(op, wrap) if op.verb == name else op for op in rtype.operations]))
    return Registry(types, PERMISSIONS, networks=whole.networks, volumes=whole.volumes, machines=whole.machines)


def _wrapped(op: Operation, wrap: Wrap) -> Operation:
    return replace(op, steps=tuple(_wrapped_step(position, step, wrap) for position, step in enumerate(op.steps)))


def _wrapped_step(position: int, step: Step, wrap: Wrap) -> Step:
    do = functools.wraps(step.do)(wrap("do", position, step.do))
    undo = functools.wraps(step.undo)(wrap("undo", position, step.undo)) if step.undo else None
    return replace(step, do=do, undo=undo)


def failing(phase: str, position: int, error: Exception, *, times: int = 1_000_000, after: bool = True) -> Wrap:
    """Wrap that lets one step do its work and then fail, so often; `after=False` fails before any work."""
    left = [times]

    def wrap(this_phase: str, this_position: int, call: Do) -> Do:
        def instead(run: StepRun) -> None:
            mine = (this_phase, this_position) == (phase, position) and left[0] > 0
            if not mine or after:
                call(run)
            if mine:
                left[0] -= 1
                raise error

        return instead

    return wrap


def both(first: Wrap, second: Wrap) -> Wrap:
    """Both wraps, the second around the first."""
    return lambda phase, position, call: second(phase, position, first(phase, position, call))


def repeated(_phase: str, _position: int, call: Do) -> Do:
    """Wrap that does everything twice."""

    def twice(run: StepRun) -> None:
        call(run)
        call(run)

    return twice
