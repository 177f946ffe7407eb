"""Words that descriptions of endpoints are made of, and the reading of a body that one of them describes."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from portal.api import body as io
from portal.api.endpoints import Schema
from portal.kernel.errors import InvalidRequest
from portal.kernel.inputs import problems

TEXT: Schema = {"type": "string"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
WHEN: Schema = {"type": ["string", "null"], "format": "date-time"}
NUMBER: Schema = {"type": "integer"}
MAYBE: Schema = {"type": ["integer", "null"]}
YES: Schema = {"type": "boolean"}


class Input(BaseModel):
    """A body: nothing in it that is not described, and no type taken for another."""

    model_config = ConfigDict(extra="forbid", strict=True)


def read(model: type[BaseModel]) -> Any:
    """The request's body as a model. Raises InvalidRequest with every problem at once."""
    try:
        return model.model_validate(io.read_object())
    except ValidationError as error:
        raise InvalidRequest.fields(problems(error)) from None


def thing(**properties: Schema) -> Schema:
    """Schema of an object of which every property is there."""
    return {"type": "object", "properties": properties, "required": sorted(properties)}


# What a deletion concerns, kind by kind: how many of it, and the names of the first.
LISTED: Schema = {"type": "array", "items": thing(label=TEXT, count=NUMBER, names={"type": "array", "items": TEXT})}
