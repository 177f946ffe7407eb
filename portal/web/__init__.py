"""The console: adapters from pages and forms to operations."""

from flask import Flask
from flask.typing import ResponseReturnValue

from portal.kernel.errors import PortalError


def install(app: Flask) -> None:
    """Register the pages."""
    del app


def render_error(error: PortalError) -> ResponseReturnValue:
    """A refusal as a page."""
    return error.message, error.status
