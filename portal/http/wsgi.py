"""The application object for a WSGI server."""

from portal.app import create_app
from portal.logging import setup_logging
from portal.settings import Settings

_settings = Settings.load()
setup_logging(_settings)
app = create_app(_settings)
