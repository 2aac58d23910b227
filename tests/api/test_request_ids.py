"""X-Request-Id on whatever is answered."""

import httpx
import pytest

from tests.api.live import LiveServer

BODY = {"model": "news", "prompt": "a", "max_tokens": 1}


def answered(http: httpx.Client, sent: str | bytes | None, path: str = "/health") -> list[str]:
    value = sent.encode() if isinstance(sent, str) else sent
    headers = [] if value is None else [(b"X-Request-Id", value)]
    return http.get(path, headers=headers).headers.get_list("X-Request-Id")


@pytest.mark.parametrize("sent", ["a", "req-1_2.3:4/5+6=", "A" * 128])
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere"])
def test_the_clients_own_comes_back(http: httpx.Client, sent: str, path: str) -> None:
    assert answered(http, sent, path) == [sent]


@pytest.mark.parametrize("sent", [None, "", "A" * 129, "a b", "-a", "é".encode(), 'a"b', "a;b"])
def test_what_is_no_id_is_replaced(http: httpx.Client, sent: str | bytes | None) -> None:
    (first,), (second,) = answered(http, sent), answered(http, sent)
    assert first != sent
    assert len(first) == 32
    assert first != second


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["news", "nobody"])
def test_answers_streams_and_errors_have_it(http: httpx.Client, stream: bool, model: str) -> None:
    body = BODY | {"stream": stream, "model": model}
    response = http.post("/v1/completions", json=body, headers={"X-Request-Id": "mine"})
    assert response.status_code == (200 if model == "news" else 404)
    assert response.headers.get_list("X-Request-Id") == ["mine"]


def test_the_unexpected_has_it_too(
    server: LiveServer, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: str) -> None:
        raise RuntimeError(model)

    with monkeypatch.context() as patch:
        patch.setattr(server.state, "resolve", fail)
        response = http.post("/v1/completions", json=BODY, headers={"X-Request-Id": "mine"})
    assert response.status_code == 500
    assert response.headers.get_list("X-Request-Id") == ["mine"]
