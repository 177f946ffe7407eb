"""The REST API: endpoints and OpenAPI document derived from the registry."""
