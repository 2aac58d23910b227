"""Which servers a load may be put on: those of this machine, unless another is asked for."""

import ipaddress
from urllib.parse import urlsplit

from loadtest.errors import LoadTestError


def check_target(url: str, *, allow_remote: bool) -> str:
    """The address without a trailing slash. Raises LoadTestError.

    Names are not resolved: what a name server says may change between the check and the load.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise LoadTestError(f"an address like http://127.0.0.1:8000 is needed, not {url!r}")
    if not allow_remote and not is_loopback(parts.hostname):
        raise LoadTestError(f"{parts.hostname} is not this machine; --allow-remote lets it be one")
    return url.rstrip("/").removesuffix("/v1")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine by its form alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
