"""One line for each request: who, what, how long, how it ended; never what was said."""

import json
import logging
import queue
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from logging.handlers import QueueHandler
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest

from finlora.api.access_log import OTHER_ROUTE
from finlora.api.request_record import RequestRecord
from finlora.config import Settings
from finlora.logs import JSONFormatter, TextFormatter
from tests.api.live import DEADLINE_SECONDS, LiveServer, serving
from tests.metrics.gauges import event, value

SECRET = "The merger with Contoso is not public."
KEY = "sk-secret-key"


@dataclass
class Lines:
    """What the request log has written."""

    records: "queue.SimpleQueue[logging.LogRecord]"

    def record(self) -> logging.LogRecord:
        """The next line; it may come after the client has its answer."""
        return self.records.get(timeout=DEADLINE_SECONDS)

    def next(self) -> dict[str, Any]:
        """The next line, read from JSON."""
        line: dict[str, Any] = json.loads(JSONFormatter().format(self.record()))
        return line


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger, found = logging.getLogger("finlora.request"), Lines(queue.SimpleQueue())
    handler = QueueHandler(found.records)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(before)


def complete(http: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"model": "news", "prompt": SECRET, "max_tokens": 5, "ignore_eos": True}
    return http.post("/v1/completions", json=body | fields, headers={"Authorization": KEY})


def test_an_answered_request_is_told_in_full(http: httpx.Client, lines: Lines) -> None:
    response = complete(http)
    answer, line = response.json(), lines.next()
    assert (line["method"], line["path"]) == ("POST", "/v1/completions")
    assert (line["status"], line["outcome"], line["client"]) == (200, "ok", "127.0.0.1")
    assert line["adapter"] == "news"
    assert line["digest"].startswith(answer["system_fingerprint"].rpartition("-")[2])
    assert line["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert line["generation_tokens"] == answer["usage"]["completion_tokens"] == 5
    assert line["finish_reasons"] == ["length"]
    assert line["request_id"] == response.headers["X-Request-Id"]
    assert 0 <= line["queue_seconds"] <= line["first_token_seconds"] <= line["seconds"]


def test_a_stream_is_told_at_its_end(client: openai.OpenAI, lines: Lines) -> None:
    stream = client.completions.create(model="tweets", prompt=SECRET, max_tokens=3, stream=True)
    assert list(stream)
    line = lines.next()
    assert (line["adapter"], line["outcome"], line["path"]) == ("tweets", "ok", "/v1/completions")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": SECRET}]}),
        ("/v1/classify", {"input": SECRET, "labels": ["good", "bad"], "template": "{input}: "}),
    ],
)
def test_other_ways_to_ask_are_told_the_same_way(
    http: httpx.Client, lines: Lines, path: str, fields: dict[str, Any]
) -> None:
    assert http.post(path, json={"model": "tweets"} | fields).status_code == 200
    text = JSONFormatter().format(lines.record())
    line = json.loads(text)
    assert (line["path"], line["adapter"], line["outcome"]) == (path, "tweets", "ok")
    assert line["prompt_tokens"] > 0
    assert "Contoso" not in text


def test_several_sequences_are_one_line(http: httpx.Client, lines: Lines) -> None:
    usage = complete(http, n=3).json()["usage"]
    line = lines.next()
    assert line["finish_reasons"] == ["length"] * 3
    assert line["generation_tokens"] == usage["completion_tokens"] == 15
    assert line["prompt_tokens"] == 3 * usage["prompt_tokens"]
    assert lines.records.empty()


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"temperature": 9}, 400, "invalid_value"),
        ({"max_tokens": 100_000}, 400, "context_length_exceeded"),
    ],
)
def test_a_refused_request_says_why(
    http: httpx.Client, lines: Lines, fields: dict[str, Any], status: int, error: str
) -> None:
    assert complete(http, **fields).status_code == status
    line = lines.next()
    assert (line["status"], line["outcome"], line["error"]) == (status, "refused", error)


@pytest.mark.parametrize("fields", [{"n": 2}, {"stream": True}])
def test_a_demand_that_becomes_too_much_on_the_way_is_not_the_servers_fault(
    server: LiveServer, http: httpx.Client, lines: Lines, fields: dict[str, Any]
) -> None:
    def ended(reason: str) -> float:
        labels = {"adapter": "news", "reason": reason}
        return value(server.state.metrics, "finlora_requests_total", **labels) or 0

    refused, errors = ended("refused"), ended("error")
    demand = {"guided_regex": "((a{1,1000}){1,1000}){1,1000}", "temperature": 0, "max_tokens": 200}
    goes_on = {"logit_bias": {"2": -100}, "ignore_eos": False}
    response = complete(http, **demand, **goes_on, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "guided_regex")
    line = lines.next()
    assert (line["status"], line["outcome"]) == (400, "refused")
    assert "refused" in line["finish_reasons"]
    assert "error" not in line["finish_reasons"]
    assert ended("refused") > refused
    assert ended("error") == errors


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_told_with_what_was_done_for_it(
    server: LiveServer, lines: Lines, stream: bool
) -> None:
    body = {"model": "news", "prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": stream}
    with httpx.Client(base_url=server.url, timeout=60) as http:
        request = http.build_request("POST", "/v1/completions", json=body)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(request.content)}"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + request.content)
        server.wait_until_busy()
    line = lines.next()
    assert (line["outcome"], line["adapter"]) == ("disconnected", "news")
    assert line["finish_reasons"] == ["abort"]
    assert line["generation_tokens"] < 200


def test_neither_prompts_nor_keys_are_written(http: httpx.Client, lines: Lines) -> None:
    complete(http, user=SECRET, cache_salt=KEY)
    complete(http, model=SECRET, stop=[SECRET])
    http.get("/v1/models", params={"key": KEY})
    for _ in range(3):
        record = lines.record()
        for text in (JSONFormatter().format(record), TextFormatter().format(record)):
            assert "Contoso" not in text
            assert KEY not in text


def test_prompts_are_written_when_that_is_asked_for(settings: Settings, lines: Lines) -> None:
    asked = settings.model_copy(update={"log_prompts": True})
    with serving(asked) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        answer = complete(http).json()
        line = lines.next()
    assert line["prompts"] == [SECRET]
    assert line["answers"] == [answer["choices"][0]["text"]]


def test_a_path_cannot_forge_a_line(http: httpx.Client, lines: Lines) -> None:
    forged = "/x\n2026-01-01 INFO finlora.request: request status=200\x1b[2J"
    assert http.get(quote(forged)).status_code == 404
    record = lines.record()
    text = TextFormatter().format(record)
    assert text.isprintable()
    assert json.loads(JSONFormatter().format(record))["path"] == forged
    assert " status=404 " in text


def test_probes_are_seen_when_debugging_only(http: httpx.Client, lines: Lines) -> None:
    for path in ("/health", "/ready", "/metrics", "/version", "/v1/models"):
        http.get(path)
    assert lines.next()["path"] == "/v1/models"


def test_requests_are_counted_by_the_servers_own_routes(
    server: LiveServer, http: httpx.Client, lines: Lines
) -> None:
    def count(route: str, status: int) -> float:
        labels = {"route": route, "status": str(status)}
        return value(server.state.metrics, "finlora_http_requests_total", **labels) or 0

    expected = [("/v1/models/{model}", 404), (OTHER_ROUTE, 404), ("/v1/completions", 405)]
    before = [count(*labels) for labels in expected]
    for path in ("/v1/models/stranger-than-all", "/no/such/path", "/v1/completions"):
        http.get(path)
        lines.next()
    assert [count(*labels) for labels in expected] == [number + 1 for number in before]


def test_an_answer_that_never_began_is_a_disconnect() -> None:
    assert RequestRecord("GET", "/", None, {}).outcome == "disconnected"


@pytest.mark.parametrize(
    ("status", "reasons", "outcome"),
    [
        (200, ["stop", "length"], "ok"),
        (200, ["stop", "abort"], "disconnected"),
        (200, ["abort", "refused"], "refused"),
        (200, ["abort", "error", "refused"], "error"),
        (499, ["abort"], "disconnected"),
        (400, ["abort", "refused"], "refused"),
        (404, ["error"], "refused"),  # an adapter that turned out not to fit
        (500, ["abort"], "error"),
        (None, ["error"], "error"),
    ],
)
def test_the_status_tells_whose_fault_it_was_and_without_one_the_sequences_do(
    status: int | None, reasons: list[str], outcome: str
) -> None:
    record = RequestRecord("POST", "/", None, {}, status=status)
    record.sequences += [event(reason=reason) for reason in reasons]
    assert record.outcome == outcome
