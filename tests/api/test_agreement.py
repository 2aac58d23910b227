"""The server's own numbers are the client's: requests, tokens, and seconds within 5 %.

What the server times is a part of what the client times, so the server's sums can only be smaller.
By how much depends on the machine as well: answers are long enough for the way between the two to
be far below 5 %, and a round in which other work held the client up is repeated.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.api.live import LiveServer
from tests.metrics.gauges import samples

NUM_REQUESTS = 4
MAX_TOKENS = 120
ROUNDS = 5
TOLERANCE = 0.05
ROUTE = "/v1/completions"


@dataclass
class Client:
    """What the client counts and times, in the server's terms."""

    http: httpx.Client
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0
    first_token_seconds: float = 0

    def ask(self, prompt: str, *, stream: bool) -> None:
        """One request; its numbers are added."""
        body: dict[str, Any] = {"model": "news", "prompt": prompt, "max_tokens": MAX_TOKENS}
        body |= {"ignore_eos": True, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        started = time.monotonic()
        with self.http.stream("POST", ROUTE, json=body) as answer:
            parts = answer.iter_lines() if stream else answer.iter_bytes()
            content = [next(parts)]
            self.first_token_seconds += time.monotonic() - started
            content += parts
        self.seconds += time.monotonic() - started
        self._count(_usage_of_events(content) if stream else _usage(content))

    def _count(self, usage: dict[str, int]) -> None:
        self.requests += 1
        self.prompt_tokens += usage["prompt_tokens"]
        self.output_tokens += usage["completion_tokens"]


def _usage(content: list[Any]) -> dict[str, int]:
    usage: dict[str, int] = json.loads(b"".join(content))["usage"]
    return usage


def _usage_of_events(lines: list[Any]) -> dict[str, int]:
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    usage: dict[str, int] = json.loads(events[-1])["usage"]
    return usage


class Scrapes:
    """How much series have grown since the last look."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        for name, labels, value in samples(self._server.state.metrics):
            if labels.get("route", ROUTE) == ROUTE:
                totals[name] = totals.get(name, 0) + value
        return totals

    def growth(self) -> Callable[[str], float]:
        """By name, over all labels."""
        before, self._before = self._before, self._now()
        return lambda name: self._before[name] - before.get(name, 0)


def agrees(server: float, client: float) -> bool:
    return (1 - TOLERANCE) * client <= server <= client


@pytest.mark.parametrize("stream", [False, True])
def test_the_servers_numbers_are_the_clients(
    server: LiveServer, http: httpx.Client, stream: bool
) -> None:
    Client(http).ask("warm up", stream=stream)
    server.wait_until_idle()
    scrapes, rounds = Scrapes(server), []
    for _ in range(ROUNDS):
        client = Client(http)
        for i in range(NUM_REQUESTS):
            client.ask(f"Profit rose {i} percent.", stream=stream)
        server.wait_until_idle()
        grown = scrapes.growth()
        assert grown("finlora_requests_total") == client.requests == NUM_REQUESTS
        assert grown("finlora_request_seconds_count") == client.requests
        assert grown("finlora_prompt_tokens_total") == client.prompt_tokens
        assert grown("finlora_output_tokens_total") == client.output_tokens
        assert grown("finlora_time_to_first_token_seconds_sum") <= client.first_token_seconds
        rounds.append((grown("finlora_request_seconds_sum"), client.seconds))
        if agrees(*rounds[-1]):
            return
    pytest.fail(f"server's and client's seconds: {rounds}")
