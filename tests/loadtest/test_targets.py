import pytest

from loadtest.errors import LoadTestError
from loadtest.targets import check_target


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.8.9.1:8000/", "http://127.8.9.1:8000"),
        ("http://localhost:80/v1", "http://localhost:80"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000"),
    ],
)
def test_this_machine_may_be_loaded(url: str, address: str) -> None:
    assert check_target(url, allow_remote=False) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1:8000",
        "http://example.org",
        "http://localhost.example.org",
        "http://127.0.0.1@example.org",
        "http://0.0.0.0:8000",
    ],
)
def test_another_machine_only_when_asked_for(url: str) -> None:
    with pytest.raises(LoadTestError, match="--allow-remote"):
        check_target(url, allow_remote=False)
    assert check_target(url, allow_remote=True) == url


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "https://127.0.0.1", "http://"])
def test_what_is_no_plain_address_is_refused(url: str) -> None:
    with pytest.raises(LoadTestError, match="needed"):
        check_target(url, allow_remote=True)
