"""Probes, models, keys: what surrounds the completions."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from pydantic import SecretStr

import finlora
from finlora.api.app import create_app
from finlora.config import Settings
from finlora.engine import golden
from finlora.engine.request import RequestOutput
from finlora.errors import BaseModelError, EngineError
from finlora.model import base_spec
from tests.api.live import LiveServer, register, serving

OPEN_PATHS = {"/", "/health", "/ready", "/version", "/metrics"}
PAGE_FILES = "/static/{version}/{name}"
BODY = {"model": "news", "prompt": "a", "max_tokens": 1}


def test_probes_of_a_ready_server(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready", "phase": "ready"}
    assert http.get("/version").json() == {"version": finlora.__version__}


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_probes_answer_with_the_head_alone(http: httpx.Client, path: str) -> None:
    response = http.head(path)
    assert response.status_code == 200
    assert not response.content


def test_metrics_show_what_was_served(http: httpx.Client) -> None:
    http.post("/v1/completions", json=BODY)
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for series in (
        'finlora_requests_total{adapter="news",reason="length"}',
        'vllm:num_requests_waiting{model_name="tiny-llama"}',
        'finlora_memory_bytes{part="kv_cache"}',
        'finlora_base_model_bytes{part="quantized"}',
        "finlora_model_info{",
        'finlora_limit{setting="max_num_seqs"} 16.0',
        "process_resident_memory_bytes",
    ):
        assert series in response.text


def test_unknown_names_never_make_a_series(http: httpx.Client) -> None:
    http.post("/v1/completions", json=BODY | {"model": "nobody-knows-this"})
    metrics = http.get("/metrics").text
    assert "nobody-knows-this" not in metrics
    assert 'finlora_requests_rejected_total{code="model_not_found"}' in metrics


def test_the_series_of_a_removed_adapter_disappear(http: httpx.Client, server: LiveServer) -> None:
    registry = server.state.registry
    register(registry.folder, server.state.engine.spec, "leaving", seed=5)
    try:
        http.post("/v1/completions", json=BODY | {"model": "leaving"})
        assert 'adapter="leaving"' in http.get("/metrics").text
    finally:
        registry.remove("leaving")
    assert 'adapter="leaving"' not in http.get("/metrics").text


def as_served(answer: Completion) -> tuple[str | None, str]:
    return answer.system_fingerprint, answer.choices[0].text


class TestModels:
    """The base and its own adapters, without paths."""

    def test_list(self, client: openai.OpenAI, server: LiveServer) -> None:
        models = {model.id: model.model_dump() for model in client.models.list()}
        assert models.keys() == {"tiny-llama", "news", "tweets"}
        assert models["tiny-llama"]["parent"] is None
        assert models["news"]["parent"] == models["news"]["root"] == "tiny-llama"
        assert models["news"]["created"] == 1767323045
        assert abs(models["tweets"]["created"] - time.time()) < 3600
        assert str(server.state.registry.folder) not in str(models)

    def test_one(self, client: openai.OpenAI, server: LiveServer) -> None:
        digest = server.state.registry.resolve("tweets").digest
        assert client.models.retrieve("tiny-llama").object == "model"
        assert client.models.retrieve("tweets").id == "tweets"
        versioned = f"tweets@{digest[:12]}"
        assert client.models.retrieve(versioned).id == versioned

    @pytest.mark.parametrize("name", ["nobody", "stranger", "news@12345678", "a/b/c"])
    def test_missing(self, client: openai.OpenAI, name: str) -> None:
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)

    def test_replaced_under_load_each_request_keeps_its_version(
        self, client: openai.OpenAI, server: LiveServer
    ) -> None:
        registry, spec = server.state.registry, server.state.engine.spec
        fields: dict[str, Any] = {
            "prompt": "The bank",
            "max_tokens": 120,
            "temperature": 0,
            "extra_body": {"ignore_eos": True},
        }
        old = register(registry.folder, spec, "replaced", seed=11)
        try:
            stream = client.completions.create(model="replaced", stream=True, **fields)
            first = next(stream)
            new = register(registry.folder, spec, "replaced", seed=12)
            after = client.completions.create(model="replaced", **fields)
            text = first.choices[0].text + "".join(part.choices[0].text for part in stream)
            by_old, by_new = (
                as_served(client.completions.create(model=adapter.reference, **fields))
                for adapter in (old, new)
            )
        finally:
            registry.remove("replaced")
        assert (first.system_fingerprint, text) == by_old
        assert as_served(after) == by_new
        assert by_old != by_new

    def test_an_adapter_added_later_is_served(
        self, client: openai.OpenAI, server: LiveServer
    ) -> None:
        registry = server.state.registry
        register(registry.folder, server.state.engine.spec, "later", seed=7)
        try:
            assert client.completions.create(model="later", prompt="a", max_tokens=1).choices
            assert "later" in {model.id for model in client.models.list()}
        finally:
            registry.remove("later")
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="later", prompt="a", max_tokens=1)


class TestAdaptersThatTheServerHasNoRoomFor:
    """They are not listed, and the answer names the flag to raise."""

    @pytest.mark.parametrize(
        ("limits", "flag"),
        [({"max_loras": 0}, "--max-loras"), ({"max_lora_rank": 3}, "--max-lora-rank")],
    )
    def test_by_their_settings(self, settings: Settings, limits: dict[str, int], flag: str) -> None:
        with serving(settings.model_copy(update=limits)) as server:
            listed = httpx.get(f"{server.url}/v1/models").json()["data"]
            answers = [
                httpx.get(f"{server.url}/v1/models/news"),
                httpx.post(f"{server.url}/v1/completions", json=BODY),
                httpx.post(
                    f"{server.url}/v1/admin/adapters/news/load",
                    headers={"Authorization": "Bearer admin-key"},
                ),
            ]
            metrics = httpx.get(f"{server.url}/metrics").text
        assert [model["id"] for model in listed] == ["tiny-llama"]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            assert flag in answer.json()["error"]["message"]
        assert not re.search(r"^finlora_adapter_load_failures_total.* [1-9]", metrics, re.MULTILINE)

    def test_by_the_rank_of_one_layer(self, settings: Settings, tmp_path: Path) -> None:
        ranks = {"layers.0.self_attn.q_proj": 65}
        register(tmp_path, base_spec(settings.model), "uneven", seed=3, rank_pattern=ranks)
        with serving(settings.model_copy(update={"registry": tmp_path})) as server:
            body = BODY | {"model": "uneven"}
            answer = httpx.post(f"{server.url}/v1/completions", json=body)
        assert answer.status_code == 404
        assert "--max-lora-rank" in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def guarded(settings: Settings) -> Iterator[LiveServer]:
    with serving(settings.model_copy(update={"api_key": SecretStr("s3cret-kéy")})) as server:
        yield server


class TestKey:
    """A server with a key."""

    @pytest.mark.parametrize(
        "header",
        [None, "", "s3cret", "Bearer", "Bearer wrong", "Basic s3cret-kéy", "Bearer s3cret-kéy2"],
    )
    def test_without_the_key_nothing_is_served(
        self, guarded: LiveServer, header: str | None
    ) -> None:
        headers = [] if header is None else [(b"authorization", header.encode())]
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models")):
            response = httpx.request(method, guarded.url + path, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"

    def test_with_the_key_everything_is(self, guarded: LiveServer) -> None:
        headers = [(b"authorization", "bearer s3cret-kéy".encode())]
        response = httpx.post(f"{guarded.url}/v1/completions", json=BODY, headers=headers)
        assert response.status_code == 200

    def test_probes_are_open(self, guarded: LiveServer) -> None:
        for path in OPEN_PATHS:
            assert httpx.get(guarded.url + path).status_code == 200

    def test_no_route_but_the_probes_is_open(self, guarded: LiveServer) -> None:
        paths = create_app(guarded.state.settings).openapi()["paths"]
        assert paths.keys() > OPEN_PATHS
        del paths[PAGE_FILES]  # known ones only: test_playground.py
        for path, methods in paths.items():
            url = guarded.url + path.replace("{model}", "news")
            for method in methods:
                status = httpx.request(method.upper(), url).status_code
                assert status == (200 if path in OPEN_PATHS else 401)


class TestLoading:
    """Before and instead of readiness."""

    def test_a_loading_server_is_healthy_but_not_ready(self, settings: Settings) -> None:
        gate = threading.Event()

        def hold(phase: str) -> None:
            gate.wait(60)

        server = LiveServer(settings, on_phase=hold)
        server.start()
        try:
            assert httpx.get(f"{server.url}/health").status_code == 200
            ready = httpx.get(f"{server.url}/ready")
            assert ready.status_code == 503
            assert ready.json()["phase"]
            for response in (
                httpx.post(f"{server.url}/v1/completions", json=BODY),
                httpx.get(f"{server.url}/v1/models"),
            ):
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "engine_not_ready"
                assert response.headers["retry-after"]
            gate.set()
            server.wait_until_loaded()
            assert httpx.get(f"{server.url}/ready").status_code == 200
        finally:
            gate.set()
            server.stop()

    def test_a_dead_engine_is_told(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die() -> list[RequestOutput]:
            raise RuntimeError("the step broke")

        with serving(settings) as server:
            monkeypatch.setattr(server.state.engine._engine, "step", die)
            response = httpx.post(f"{server.url}/v1/completions", json=BODY)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_not_ready"
            assert httpx.get(f"{server.url}/health").status_code == 503
            assert httpx.get(f"{server.url}/ready").status_code == 503

    def test_a_server_that_cannot_load_says_so(self, settings: Settings) -> None:
        server = LiveServer(settings.model_copy(update={"model": "/no/such/folder"}))
        server.start()
        try:
            with pytest.raises(BaseModelError):
                server.wait_until_loaded()
            assert httpx.get(f"{server.url}/health").status_code == 503
            assert httpx.get(f"{server.url}/ready").json()["phase"] == "failed"
            response = httpx.post(f"{server.url}/v1/completions", json=BODY)
            assert response.status_code == 503
        finally:
            server.stop()

    def test_whatever_ends_the_loading_is_told(self, settings: Settings) -> None:
        def leave(phase: str) -> None:
            raise SystemExit(1)

        server = LiveServer(settings, on_phase=leave)
        server.start()
        try:
            with pytest.raises(EngineError, match=r"SystemExit\(1\)"):
                server.wait_until_loaded()
            assert httpx.get(f"{server.url}/health").status_code == 503
            assert httpx.get(f"{server.url}/ready").json()["phase"] == "failed"
        finally:
            server.stop()

    def test_a_base_that_fails_its_check_is_never_ready(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(golden, "MAX_MEAN_DIFFERENCE", -1.0)
        server = LiveServer(settings)
        server.start()
        try:
            with pytest.raises(BaseModelError, match="must not serve"):
                server.wait_until_loaded()
            assert httpx.get(f"{server.url}/ready").status_code == 503
            assert httpx.post(f"{server.url}/v1/completions", json=BODY).status_code == 503
        finally:
            server.stop()
