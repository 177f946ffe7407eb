"""REST API v1, derived from the registry: one table of endpoints gives routes, aliases and the OpenAPI document."""

from functools import cache

from flask import Flask

from portal.api import (
    audit,
    bucket_services,
    buckets,
    compute,
    core,
    factors,
    identity,
    keys,
    networking,
    oauth_clients,
    object_uploads,
    objects,
    projects,
    quotas,
    resources,
    roles,
    security,
    service_accounts,
    storage,
    users,
)
from portal.api.endpoints import Endpoint, register
from portal.api.openapi import document


def install(app: Flask) -> None:
    """Register the endpoints."""
    registry = app.extensions["portal"][1]

    @cache
    def described() -> dict[str, object]:
        return document(endpoints, registry)

    endpoints: list[Endpoint] = [
        *core.endpoints(described), *quotas.endpoints(), *audit.endpoints(), *identity.endpoints(app),
        *projects.endpoints(), *factors.endpoints(), *users.endpoints(), *service_accounts.endpoints(), *oauth_clients.endpoints(), *compute.endpoints(),
        *networking.endpoints(), *storage.endpoints(), *objects.endpoints(), *object_uploads.endpoints(), *buckets.endpoints(),
        *bucket_services.endpoints(), *security.endpoints(), *keys.endpoints(), *roles.endpoints(), *resources.endpoints_of(registry),
    ]  # fmt: skip
    register(app, endpoints)
    app.extensions["portal_api"] = (endpoints, described)
