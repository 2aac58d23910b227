"""What a user writes for `--url`."""

import httpx

from finlora.errors import ConfigError


def server_url(text: str) -> str:
    """The server's address without `/v1`, which may be there. Raises ConfigError."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise _not_one(text) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise _not_one(text)
    return text.rstrip("/").removesuffix("/v1")


def _not_one(text: str) -> ConfigError:
    return ConfigError(f"--url {text!r} is no address of a server: write http://127.0.0.1:8000")
