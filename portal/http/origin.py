"""The portal's own address as browsers and other services may be told it: from PUBLIC_URL, or from a Host header that names this machine."""

import ipaddress
from urllib.parse import urlsplit

from flask import request

from portal.http.request import LOOPBACK_NAMES, portal_settings
from portal.identity.passkeys import Site
from portal.kernel.errors import Unavailable


def own_origin() -> str:
    """Scheme, host and port without a slash at the end. Raises Unavailable where only a Host header says so, which anybody can send."""
    if public := portal_settings().public_url:
        parts = urlsplit(public)
        return f"{parts.scheme}://{parts.netloc}"
    if (urlsplit(request.host_url).hostname or "") in {name.strip("[]") for name in LOOPBACK_NAMES}:
        return request.host_url.rstrip("/")
    raise Unavailable("An administrator has to set PUBLIC_URL to the address of this portal first.")


def passkey_site() -> Site:
    """Where passkeys are for. Raises Unavailable at an address without a name, for which browsers make none."""
    origin = own_origin()
    host = urlsplit(origin).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return Site(host, origin)
    raise Unavailable("Browsers make passkeys for host names only. On this machine, open the portal as http://localhost instead of by its number.")


def takes_passkeys() -> bool:
    """Whether this address can have passkeys."""
    try:
        passkey_site()
    except Unavailable:
        return False
    return True
