"""Who may ask: a key on every router but the open ones, and no open server by accident."""

import hmac

from fastapi import Request
from pydantic import SecretStr

from finlora.api.errors import AdministrationDisabledError, AuthenticationError
from finlora.api.state import server_state
from finlora.config import Settings
from finlora.errors import ConfigError
from finlora.loopback import is_loopback


def check_exposure(settings: Settings) -> None:
    """Refuse to listen beyond this machine without a key, or with one key for all.

    Raises ConfigError.
    """
    if settings.admin_key is not None and settings.admin_key == settings.api_key:
        raise ConfigError(
            "the admin key is the API key: give FINLORA_ADMIN_KEY a value of its own, or leave it "
            "out to switch administration off"
        )
    if settings.api_key is None and not settings.insecure and not is_loopback(settings.host):
        raise ConfigError(
            f"{settings.host} is reachable from other machines and there is no API key: "
            "set FINLORA_API_KEY, or give --insecure to serve everybody"
        )


async def require_api_key(request: Request) -> None:
    """A router's dependency: the key, where one is set. Raises AuthenticationError."""
    settings = server_state(request).settings
    if settings.api_key is not None:
        _check_bearer(request, settings.api_key, "API")
    elif not settings.insecure and not _is_local(request):
        # Another launcher than ours may have bound the address.
        raise AuthenticationError("this server has no API key and serves its own machine only")


async def require_admin_key(request: Request) -> None:
    """A router's dependency: the admin key, and nothing without one, on loopback neither.

    Raises AdministrationDisabledError, AuthenticationError.
    """
    key = server_state(request).settings.admin_key
    if key is None:
        raise AdministrationDisabledError(
            "administration is off: start the server with FINLORA_ADMIN_KEY set, and send that key"
        )
    _check_bearer(request, key, "admin")


def _check_bearer(request: Request, key: SecretStr, kind: str) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    expected = key.get_secret_value().encode()
    # Headers are Latin-1; the comparison takes the same time however much of the key is right.
    same = hmac.compare_digest(given.strip().encode("latin-1"), expected)
    if scheme.lower() != "bearer" or not same:
        raise AuthenticationError(f"the {kind} key is needed: Authorization: Bearer <key>")


def _is_local(request: Request) -> bool:
    """Whether the connection came in on a loopback address or a Unix socket."""
    server = request.scope.get("server")
    return server is not None and (server[1] is None or is_loopback(server[0]))
