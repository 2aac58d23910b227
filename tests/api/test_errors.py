"""Every row of the error table as a client sees it, and that nothing else comes out."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from finlora.adapters.adapter import WEIGHTS_FILE
from finlora.api.app import create_app
from finlora.api.errors import ERRORS, INTERNAL_ERROR, error_body, kind_of
from finlora.api.protocol import CompletionRequest
from finlora.config import Settings
from finlora.errors import FinLoRAError
from tests.api.live import LiveServer, register

VALID = {"model": "news", "prompt": "a", "max_tokens": 1}


def error_of(response: httpx.Response) -> tuple[int, str, str | None, str]:
    """Status, type, param and code; the object has exactly OpenAI's four fields."""
    error = response.json()["error"]
    assert response.json().keys() == {"error"}
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return response.status_code, error["type"], error["param"], error["code"]


def subclasses(cls: type[FinLoRAError]) -> Iterator[type[FinLoRAError]]:
    """Those of finlora.errors: what commands define for themselves never reaches a client."""
    for child in cls.__subclasses__():
        if child.__module__ == FinLoRAError.__module__:
            yield child
            yield from subclasses(child)


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (VALID | {"model": "nobody"}, 404, "model", "model_not_found"),
        (VALID | {"model": "news@00000000"}, 404, "model", "model_not_found"),
        (VALID | {"model": "../../etc/passwd"}, 404, "model", "model_not_found"),
        (VALID | {"model": "stranger"}, 404, "model", "model_not_found"),
        (VALID | {"prompt": [1] * 300}, 400, "prompt", "context_length_exceeded"),
        (VALID | {"max_tokens": 300}, 400, "prompt", "context_length_exceeded"),
        (VALID | {"prompt": "a" * 10_000}, 400, "prompt", "context_length_exceeded"),
        (VALID | {"prompt": "a" * 150_000}, 400, "prompt", "context_length_exceeded"),
        (VALID | {"prompt": [512]}, 400, "prompt", "invalid_value"),
        (VALID | {"prompt": [[1], [-1]]}, 400, "prompt", "invalid_value"),
        (VALID | {"logit_bias": {"512": 1}}, 400, "logit_bias", "invalid_value"),
        (VALID | {"stop_token_ids": [512]}, 400, "stop_token_ids", "invalid_value"),
        (VALID | {"temperature": -1}, 400, "temperature", "invalid_value"),
        (VALID | {"tempreature": 1}, 400, "tempreature", "invalid_value"),
        (VALID | {"suffix": "x"}, 400, "suffix", "invalid_value"),
    ],
)
def test_a_bad_request_gets_its_row(
    http: httpx.Client, body: dict[str, Any], status: int, param: str, code: str
) -> None:
    answer = error_of(http.post("/v1/completions", json=body))
    assert answer == (status, "invalid_request_error", param, code)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": NaN'])
def test_a_malformed_body_is_a_400(http: httpx.Client, content: bytes) -> None:
    answer = error_of(http.post("/v1/completions", content=content))
    assert answer == (400, "invalid_request_error", None, "invalid_value")


def test_another_bases_adapter_is_refused_with_the_reason(http: httpx.Client) -> None:
    message = http.post("/v1/completions", json=VALID | {"model": "stranger"}).json()["error"]
    assert "base" in message["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(http: httpx.Client, chunked: bool) -> None:
    body = json.dumps(VALID | {"user": "x" * 300_000}).encode()
    pieces = (body[i : i + 1000] for i in range(0, len(body), 1000))
    response = http.post("/v1/completions", content=pieces if chunked else body)
    assert error_of(response) == (413, "invalid_request_error", None, "request_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/nowhere", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
    ],
)
def test_a_wrong_address_gets_openais_object(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path)
    assert error_of(response) == (status, "invalid_request_error", None, code)
    assert ("allow" in response.headers) == (status == 405)


def test_a_full_queue_says_when_to_come_back(server: LiveServer, http: httpx.Client) -> None:
    many = VALID | {"n": 128, "max_tokens": 200, "stream": True, "ignore_eos": True}
    with http.stream("POST", "/v1/completions", json=many) as stream:
        lines = stream.iter_lines()  # closes the stream when it goes
        next(lines)
        with httpx.Client(base_url=server.url) as other:
            response = other.post("/v1/completions", json=VALID)
        assert error_of(response) == (503, "server_error", None, "overloaded")
        assert int(response.headers["retry-after"]) >= 1


def test_the_client_library_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nobody", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="news", prompt="a", max_tokens=-1)
    assert bad.value.param == "max_tokens"


def test_broken_files_fail_their_own_requests_only(
    server: LiveServer, http: httpx.Client, tmp_path: Path
) -> None:
    folder = server.state.registry.folder
    adapter = register(folder, server.state.engine.spec, "broken", seed=6)
    weights = adapter.folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    try:
        response = http.post("/v1/completions", json=VALID | {"model": "broken"})
        assert error_of(response) == (500, "server_error", "model", "adapter_load_failed")
        assert str(folder) not in response.text
        assert http.post("/v1/completions", json=VALID).status_code == 200
    finally:
        server.state.registry.remove("broken")


def test_what_is_no_http_ends_the_connection_only(server: LiveServer, http: httpx.Client) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert http.get("/health").status_code == 200


def test_every_error_a_client_can_cause_has_a_row() -> None:
    internal = {
        cls.__name__ for cls in subclasses(FinLoRAError) if kind_of(cls("x")) is INTERNAL_ERROR
    }
    assert internal == {
        "ConfigError", "BaseModelError", "AdapterError", "EngineError", "RemoteError",
    }  # fmt: skip
    assert all(issubclass(cls, FinLoRAError) for cls in ERRORS)


def test_the_unexpected_is_a_500_that_shows_nothing(
    server: LiveServer, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: str) -> None:
        raise RuntimeError(f"secret about {model}")

    with monkeypatch.context() as patch:
        patch.setattr(server.state, "resolve", fail)
        response = http.post("/v1/completions", json=VALID)
    assert error_of(response) == (500, "server_error", None, "internal_error")
    assert "secret" not in response.text
    assert http.post("/v1/completions", json=VALID).status_code == 200


def test_a_parameter_of_the_wrong_type_is_a_400(settings: Settings) -> None:
    async def typed(number: int) -> None:
        raise AssertionError(number)

    async def answer() -> httpx.Response:
        app = create_app(settings)
        app.add_api_route("/typed/{number}", typed)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/typed/x")

    response = asyncio.run(answer())
    assert error_of(response) == (400, "invalid_request_error", "number", "invalid_value")


def test_the_error_object_of_the_unexpected_is_empty() -> None:
    body = error_body(RuntimeError("secret /path"))
    assert body["error"] == {
        "message": "internal error",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }


values = st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats(-5, 5) | st.text()
fields = st.dictionaries(
    st.sampled_from(sorted(CompletionRequest.model_fields)) | st.text(max_size=8),
    values | st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=2),
    max_size=4,
)


@given(fields)
@hypothesis_settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_body_is_an_internal_error(http: httpx.Client, fields: dict[str, Any]) -> None:
    # Without these hypothesis would mostly find that the field is missing.
    body = VALID | fields
    response = http.post("/v1/completions", content=json.dumps(body).encode())
    assert response.status_code in (200, 400, 404, 503)
    if response.status_code != 200:
        error_of(response)
