"""Where the server may listen. Keys on requests are tested on a live server (test_app.py)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.requests import Request

from finlora.api.app import create_app
from finlora.api.auth import check_exposure, require_api_key
from finlora.api.errors import AuthenticationError
from finlora.config import Settings, load_settings
from finlora.errors import ConfigError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1"])
def test_this_machine_needs_no_key(host: str) -> None:
    check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.com", "localhost.evil.com"])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="FINLORA_API_KEY"):
        check_exposure(Settings(host=host))
    check_exposure(Settings(host=host, api_key=SecretStr("key")))
    check_exposure(Settings(host=host, insecure=True))


def test_an_empty_key_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINLORA_API_KEY", "")
    monkeypatch.setenv("FINLORA_ADMIN_KEY", "")
    settings = load_settings(host="0.0.0.0")
    assert settings.admin_key is None
    with pytest.raises(ConfigError, match="FINLORA_API_KEY"):
        check_exposure(settings)


def test_administration_needs_a_key_of_its_own() -> None:
    with pytest.raises(ConfigError, match="admin key"):
        check_exposure(Settings(api_key=SecretStr("one"), admin_key=SecretStr("one")))
    check_exposure(Settings(api_key=SecretStr("one"), admin_key=SecretStr("two")))


def request_on(settings: Settings, address: Any) -> Request:
    """A request that came in on an address of this machine."""
    scope = {"type": "http", "headers": [], "app": create_app(settings), "server": address}
    return Request(scope)


@pytest.mark.parametrize("address", [("127.0.0.1", 8000), ("::1", 8000), ("/run/server", None)])
def test_a_local_connection_needs_no_key(tmp_path: Path, address: Any) -> None:
    asyncio.run(require_api_key(request_on(Settings(registry=tmp_path), address)))


@pytest.mark.parametrize("address", [("10.0.0.5", 8000), ("fd00::2", 8000), None])
def test_whatever_launched_it_nobody_else_is_served_without_a_key(
    tmp_path: Path, address: Any
) -> None:
    with pytest.raises(AuthenticationError):
        asyncio.run(require_api_key(request_on(Settings(registry=tmp_path), address)))
    asyncio.run(require_api_key(request_on(Settings(registry=tmp_path, insecure=True), address)))
