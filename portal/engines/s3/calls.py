"""One call of the engine: what it refuses and that it does not answer, in the portal's words."""

from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from portal.engines.object_engine_ports import ObjectRefused
from portal.engines.ports import EngineUnavailable

SERVER_FAULT = 500
SILENT = "The engine for objects does not answer. Try again in a moment; nothing is lost."


def call(client: Any, name: str, **given: Any) -> Any:
    """An operation of botocore. Raises ObjectRefused or EngineUnavailable."""
    try:
        return getattr(client, name)(**given)
    except ClientError as error:
        raise refusal(error) from error
    except BotoCoreError as error:
        raise EngineUnavailable(SILENT) from error


def refusal(error: ClientError) -> ObjectRefused | EngineUnavailable:
    """What the engine said."""
    said, about = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    code, status = str(said.get("Code", "")), int(about.get("HTTPStatusCode", 0))
    if status >= SERVER_FAULT:
        return EngineUnavailable(SILENT)
    return ObjectRefused(code, f"The engine for objects refused it: {said.get('Message') or code}.")
