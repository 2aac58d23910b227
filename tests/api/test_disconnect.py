"""Clients that leave: at every stage their sequences end and leave nothing behind."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.live import LiveServer

# Far more than 16 sequences that run at once, so most of them wait.
MANY = {"model": "news", "prompt": "a", "n": 64, "max_tokens": 200, "ignore_eos": True}
ONE = MANY | {"n": 1}


def num_aborted(http: httpx.Client) -> float:
    return count(http, "finlora_requests_total", reason="abort")


def count(http: httpx.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@contextmanager
def sent(server: LiveServer, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A raw connection on which the request has been sent."""
    content = json.dumps(body).encode()
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        yield connection


@pytest.mark.parametrize("body", [ONE, MANY], ids=["one", "many"])
def test_a_reader_of_a_stream_leaves(
    server: LiveServer, http: httpx.Client, body: dict[str, Any]
) -> None:
    before = num_aborted(http)
    with sent(server, body | {"stream": True}) as connection:
        assert b"200 OK" in connection.recv(1000)
    server.wait_until_idle()
    assert num_aborted(http) - before == body["n"]


def test_who_waits_for_an_answer_leaves(server: LiveServer, http: httpx.Client) -> None:
    before, queued = num_aborted(http), count(http, "finlora_disconnects_total", phase="queue")
    with sent(server, MANY):
        server.wait_until_busy()
    server.wait_until_idle()
    assert num_aborted(http) - before == MANY["n"]
    # 16 can have run; where they stood depends on the moment.
    in_queue = count(http, "finlora_disconnects_total", phase="queue") - queued
    assert MANY["n"] - 16 <= in_queue <= MANY["n"]


def test_the_rest_of_a_request_that_is_refused_has_not_left(
    server: LiveServer, http: httpx.Client
) -> None:
    with sent(server, ONE | {"stream": True}) as connection:
        assert b"200 OK" in connection.recv(1000)
        before, left = num_aborted(http), count(http, "finlora_disconnects_total")
        tokens = count(http, "finlora_prompt_tokens_total")
        # There is room for 128 in the engine, so the last of these is refused.
        response = http.post("/v1/completions", json=MANY | {"n": 128})
        assert response.json()["error"]["code"] == "overloaded"
        assert num_aborted(http) - before == 127
        assert count(http, "finlora_disconnects_total") == left
        # At most 15 of them have run, each with a prompt of few tokens.
        assert count(http, "finlora_prompt_tokens_total") - tokens < 127


def test_one_leaves_and_the_other_is_served(server: LiveServer, http: httpx.Client) -> None:
    with sent(server, MANY | {"stream": True}) as connection:
        assert b"200 OK" in connection.recv(1000)
        answer = http.post("/v1/completions", json=ONE | {"max_tokens": 5})
    assert answer.json()["usage"]["completion_tokens"] == 5


def test_half_a_request_is_nothing(server: LiveServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    server.wait_until_idle()
