"""A small server whose adapters keep changing places, so that every series moves."""

from collections.abc import Iterator

import pytest

from finlora.config import Quantization, Settings
from finlora.model import base_spec
from tests import tiny_models
from tests.api.live import MAX_MODEL_LEN, LiveServer, register, serving

ADAPTERS = ("news", "tweets")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("deploy")
    model = tiny_models.build("llama", folder / "tiny-llama")
    for seed, name in enumerate(ADAPTERS):
        register(folder / "registry", base_spec(str(model)), name, seed=seed)
    settings = Settings(
        model=str(model),
        quantization=Quantization.NF4,
        device="cpu",
        registry=folder / "registry",
        max_model_len=MAX_MODEL_LEN,
        kv_cache_bytes=4 * 2**20,
        max_loras=1,
        adapter_cache_bytes=1,  # who is not needed now leaves RAM too
    )
    with serving(settings) as server:
        yield server
