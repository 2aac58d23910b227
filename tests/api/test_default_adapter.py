"""Requests that name the base, on a server with an adapter for them."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from finlora.config import Settings
from finlora.errors import AdapterNotFoundError
from tests.api.live import LiveServer, serving


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[LiveServer]:
    with serving(settings.model_copy(update={"default_adapter": "news"})) as live:
        yield live


def complete(server: LiveServer, model: str) -> Any:
    body = {"model": model, "prompt": "Profit rose.", "max_tokens": 8, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    return answer.raise_for_status().json()["choices"][0]["text"]


def test_the_base_answers_with_it(server: LiveServer) -> None:
    base = server.state.engine.spec.name
    assert complete(server, base) == complete(server, "news")
    assert complete(server, f"{base}:tweets") == complete(server, "tweets")
    assert complete(server, base) != complete(server, "tweets")


def test_an_unknown_one_fails_the_start(settings: Settings) -> None:
    wrong = settings.model_copy(update={"default_adapter": "nobody"})
    with pytest.raises(AdapterNotFoundError), serving(wrong):
        pass
