"""REST API v1, derived from the registry."""

from flask import Flask


def install(app: Flask) -> None:
    """Register the endpoints."""
    del app
