"""Which servers a load may be put on: those of this machine, unless another is asked for."""

from urllib.parse import urlsplit

from finlora.loopback import is_loopback
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
