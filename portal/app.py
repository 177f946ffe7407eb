"""Wiring only: settings, database, registry, HTTP, console and API become one Flask application."""

from collections.abc import Callable, Sequence

from flask import Flask
from htmx_flask import Htmx

from portal import api, web
from portal.catalogue import build_registry
from portal.engines.ports import Engines
from portal.engines.registry import open_engines
from portal.http import access_log, errors, guard, probes, request, security, sso
from portal.kernel.db import db, prepare_engine
from portal.settings import ROOT, Settings
from portal.worker.delivery import delivery_for


def create_app(settings: Settings, *, engines: Engines | None = None, deliver: Callable[[Sequence[str]], None] | None = None) -> Flask:
    """The web application; `engines` and `deliver` are chosen by the settings unless given."""
    app = Flask("portal", template_folder=str(ROOT / "templates"), static_folder=str(ROOT / "static"))
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    app.config["SQLALCHEMY_DATABASE_URI"] = settings.database()
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "pool_size": settings.db_pool_size,
        "max_overflow": settings.web_threads,
        "pool_pre_ping": True,
        "hide_parameters": True,
    }
    app.json.sort_keys = False  # type: ignore[attr-defined] # the default provider has it
    db.init_app(app)
    with app.app_context():
        prepare_engine(db.engine)
    app.extensions["portal_engines"] = engines if engines is not None else open_engines(settings, owner=False)
    probes.install(app)
    request.install(app, settings, build_registry(), deliver if deliver is not None else delivery_for(settings))
    access_log.install(app)
    security.install(app, settings)
    guard.install(app)
    sso.install(app, settings)
    Htmx(app)
    web.install(app)
    api.install(app)
    errors.install(app, web.render_error)
    guard.check(app)
    return app
