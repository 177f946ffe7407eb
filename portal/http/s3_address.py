"""Where S3 clients and browsers find the gateway, as far as this process can know."""

from urllib.parse import urlsplit

from portal.http.request import own_origin, portal_settings
from portal.kernel.errors import Unavailable
from portal.settings import ObjectsDriver


def s3_endpoint() -> str:
    """Scheme, host and port of the S3 interface. Raises Unavailable where it is switched off, or the portal's own address is not sure."""
    settings = portal_settings()
    if settings.engine_objects is ObjectsDriver.S3:
        return settings.s3_engine_endpoint.rstrip("/")
    if settings.s3_public_url:
        return settings.s3_public_url.rstrip("/")
    if not settings.s3_port:
        raise Unavailable("The S3 interface is switched off on this installation.")
    scheme = "https" if settings.s3_tls_cert else "http"
    return f"{scheme}://{urlsplit(own_origin()).hostname}:{settings.s3_port}"
