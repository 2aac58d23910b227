"""Tiny bases in NF4 and float32 with every kind of adapter, and engines that must end empty."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from finlora.adapters.adapter import Adapter
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Quantization
from finlora.model import LoadedBase, load_base
from finlora.native import library
from tests.engine.adapter_zoo import make_zoo
from tests.engine.harness import EngineUnderTest, register
from tests.tiny_models import build

EngineMaker = Callable[..., EngineUnderTest]


@dataclass(frozen=True)
class World:
    """A base folder, its adapters as PEFT folders, and a registry with all of them."""

    base: Path
    folders: dict[str, Path]
    registry: AdapterRegistry
    adapters: dict[str, Adapter]

    def load(self, dtype: torch.dtype = torch.float32) -> LoadedBase:
        """NF4, in float32 wherever the tests run: an oracle needs the same numbers."""
        return load_base(str(self.base), Quantization.NF4, device="cpu", dtype=dtype)


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """Worlds by architecture, each made once."""
    made: dict[str, World] = {}

    def get(architecture: str) -> World:
        if architecture not in made:
            root = tmp_path_factory.mktemp(architecture)
            base = build(architecture, root / "base")
            folders = make_zoo(base, root / "peft")
            registry = AdapterRegistry(root / "registry")
            made[architecture] = World(base, folders, registry, register(registry, folders))
        return made[architecture]

    return get


@pytest.fixture
def llama(worlds: Callable[[str], World]) -> World:
    return worlds("llama")


@pytest.fixture
def make_engine() -> Iterator[EngineMaker]:
    """Engines over a world; at the end of the test nothing may be left in them."""
    made: list[EngineUnderTest] = []

    def make(
        world: World, *, dtype: torch.dtype = torch.float32, **settings: object
    ) -> EngineUnderTest:
        engine = EngineUnderTest(world.load(dtype), world.registry, **settings)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def without_avx512_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose compiler did not know AVX512_BF16."""
    monkeypatch.setattr(library, "avx512_obstacle", lambda: "switched off by a test")


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where ours could not be compiled."""
    monkeypatch.setattr(library, "obstacle", lambda: "switched off by a test")
