"""Where the server may listen. Keys on requests are tested on a live server (test_app.py)."""

import pytest
from pydantic import SecretStr

from finlora.api.auth import check_exposure
from finlora.config import Settings
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
