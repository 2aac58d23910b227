"""A live server over a tiny base, and the flags that make the same engine in process."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from finlora.config import Quantization, Settings
from finlora.model import base_spec
from tests import tiny_models
from tests.api.live import LiveServer, register, serving

MAX_MODEL_LEN = 128


@dataclass(frozen=True)
class World:
    """A base with an adapter, as a command line names them."""

    base: Path
    registry: Path

    @property
    def flags(self) -> list[str]:
        """The engine of this world."""
        sizes = ["--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-bytes", str(4 << 20)]
        model = ["--model", str(self.base), "--device", "cpu"]
        return [*model, "--registry", str(self.registry), *sizes]

    @property
    def settings(self) -> Settings:
        """The same for a server."""
        return Settings(
            model=str(self.base), quantization=Quantization.NF4, device="cpu",
            registry=self.registry, max_model_len=MAX_MODEL_LEN, kv_cache_bytes=4 << 20,
            shutdown_seconds=5,
        )  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("batch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINLORA_CACHE", str(root / "cache"))
        base = tiny_models.build("llama", root / "tiny-llama")
        register(root / "registry", base_spec(str(base)), "news", seed=0)
        yield World(base, root / "registry")


@pytest.fixture(scope="session")
def server(world: World) -> Iterator[LiveServer]:
    with serving(world.settings) as live:
        yield live
