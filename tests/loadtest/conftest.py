"""A server that loads can be put on: a tiny random model, two adapters, and one with torn files."""

import urllib.request
from collections.abc import Iterator

import pytest

from finlora.adapters.adapter import WEIGHTS_FILE
from finlora.config import Quantization, Settings
from finlora.model import base_spec
from tests import tiny_models
from tests.api.live import LiveServer, register, serving


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a proxy, and nobody listens there."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    # urllib reads the environment once, for the whole process.
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("loadtest")
    model = tiny_models.build("llama", folder / "tiny-llama")
    spec = base_spec(str(model))
    for seed, name in enumerate(("news", "tweets", "broken")):
        adapter = register(folder / "registry", spec, name, seed=seed)
    weights = adapter.folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-100])
    settings = Settings(
        model=str(model),
        quantization=Quantization.NF4,
        device="cpu",
        registry=folder / "registry",
        max_model_len=256,
        max_loras=4,
        kv_cache_bytes=4 * 2**20,
    )
    with serving(settings) as live:
        yield live
