"""From `finlora train` to a running server and back, as a user does it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from finlora.adapters.adapter import Adapter
from finlora.adapters.cli import main as adapters
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Settings
from finlora.training.cli import main as train
from tests.api.live import MAX_MODEL_LEN, LiveServer, serving
from tests.training.configs import write_config
from tests.training.rows import make_rows, write_rows


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "registry")


@pytest.fixture
def server(base_folder: Path, registry: AdapterRegistry) -> Iterator[LiveServer]:
    registry.folder.mkdir()
    settings = Settings(
        model=str(base_folder),
        device="cpu",
        registry=registry.folder,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_bytes=2_000_000,
    )
    with serving(settings) as running:
        yield running


def test_what_is_trained_is_served_at_once_and_rolled_back_at_once(
    server: LiveServer, registry: AdapterRegistry, tmp_path: Path, base_folder: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl")
    config = write_config(tmp_path, base_folder, num_epochs=2)
    fixed = ["verbs", "--config", str(config), "--registry", str(registry.folder)]
    folder = ["--registry", str(registry.folder)]

    with httpx.Client(base_url=server.url, timeout=120) as client:

        def ask(model: str) -> Any:
            body = {"model": model, "prompt": make_rows()[0].context, "max_tokens": 1}
            return client.post("/v1/completions", json=body | {"logprobs": 3, "temperature": 0})

        def said(model: str) -> dict[str, float]:
            response = ask(model)
            assert response.status_code == 200, response.text
            found: dict[str, float] = response.json()["choices"][0]["logprobs"]["top_logprobs"][0]
            return found

        def is_served(version: Adapter) -> bool:
            # Float32 products differ in the last bits with the number of rows.
            return said("verbs") == pytest.approx(said(version.reference), abs=1e-4)

        assert ask("verbs").status_code == 404
        assert train(fixed) == 0
        first = registry.resolve("verbs")
        assert is_served(first)

        # Too few rows to compare: the user says what happens.
        assert train([*fixed, "--seed", "1"]) == 0
        assert is_served(first)
        assert train([*fixed, "--seed", "2", "--when-unsure", "promote"]) == 0
        second = registry.resolve("verbs")
        assert is_served(second)
        assert not is_served(first)

        assert adapters(["rollback", "verbs", *folder]) == 0
        assert is_served(first)
        assert train([*fixed, "--seed", "3", "--min-accuracy", "1"]) == 0
        assert is_served(first)
