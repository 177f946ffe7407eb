"""What an external engine for objects has to do when a bucket changes: one repeatable step, which makes the engine's bucket what the row says.

Where the portal keeps objects itself there is nothing to do, and changes are done at once.
"""

from typing import Any

from portal.engines.object_engine_ports import ObjectEngine, ObjectRefused
from portal.engines.ports import EngineUnavailable
from portal.kernel.context import Context
from portal.kernel.declare import Step
from portal.kernel.errors import Unavailable
from portal.kernel.runner import StepFailed, StepRun
from portal.settings import ObjectsDriver, Settings

NOT_EMPTY = "BucketNotEmpty"


def on_engine(settings: Settings) -> bool:
    """Whether an external engine keeps the objects."""
    return settings.engine_objects is ObjectsDriver.S3


def refuse_on_engine(ctx: Context, what: str) -> None:
    """Raise Unavailable for what the portal does with objects that it keeps itself, and an external engine is not asked to do."""
    if on_engine(ctx.settings):
        raise Unavailable(
            f"The portal does not manage {what} on an external engine for objects (ENGINE_OBJECTS=s3). Use an S3 client, or ask an administrator."
        )


def object_engine(run: StepRun) -> ObjectEngine:
    """The engine. Raises EngineUnavailable on a worker that has none."""
    if run.engines.objects is None:
        raise EngineUnavailable("This worker has no engine for objects.")
    return run.engines.objects


def fit(run: StepRun) -> None:
    """Make the bucket, its owner and its policy at the engine what they are to be."""
    from portal.storage.engine_wanted import fit_bucket

    fit_bucket(run.sessions, run.settings, run.registry, object_engine(run), run.row.id)
    run.detail = run.row.name


def take_away(run: StepRun) -> None:
    """Remove the bucket at the engine; with everything in it, if that was asked for."""
    from portal.storage.engine_wanted import forget_bucket

    try:
        forget_bucket(run.sessions, run.settings, object_engine(run), run.row.id, force=bool(run.input.get("force")))
    except ObjectRefused as error:
        if error.code == NOT_EMPTY:
            text = f"{run.row.name} is not empty. Delete what is in it first, older versions included, or use force."
            raise StepFailed(text) from error
        raise


def take_back(run: StepRun) -> None:
    """Remove what a bucket that could not be made has left there; one with objects in it stays."""
    run.input.pop("force", None)
    take_away(run)


MAKE = (Step(fit, "Make the bucket at the engine", undo=take_back),)
FIT = (Step(fit, "Tell the engine", because="the next look at the engine tells it again"),)
REMOVE = (Step(take_away, "Remove the bucket at the engine", because="what is gone does not come back"),)
ON_ENGINE: dict[str, Any] = {"steps": FIT, "by_job": on_engine, "settles": "active", "fails": "active", "when": {"active"}}
