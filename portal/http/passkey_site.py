"""Where passkeys are for: browsers bind them to the portal's host name."""

import ipaddress
from urllib.parse import urlsplit

from portal.http.request import own_origin
from portal.identity.passkeys import Site
from portal.kernel.errors import Unavailable


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
