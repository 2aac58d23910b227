"""A tiny base and an adapter with labels and a template, for files to be labelled with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from finlora import Engine
from finlora.adapters.adding import Target, add_folder
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Quantization
from finlora.model import base_spec
from finlora.predict.cli import main
from tests import tiny_models
from tests.adapters.peft_folders import save_adapter

LABELS = ["bad", "good"]
TEMPLATE = "Input: {input}\nAnswer: "
HEADLINES = [
    "Operating profit rose 12 percent",
    "Shares, of the airline, fell",
    'The bank "would keep" its dividend',
    "Zürich's insurer paid €3 for each share\nand investors cheered 🎉",
]

Predict = Callable[..., int]


@dataclass(frozen=True)
class World:
    """What a command line names."""

    base: Path
    registry: Path

    @property
    def flags(self) -> list[str]:
        """How to get the engine of this world."""
        sizes = ["--max-model-len", "128", "--kv-cache-bytes", str(16 << 20)]
        model = ["--model", str(self.base), "--quantization", "none", "--device", "cpu"]
        return ["--registry", str(self.registry), *model, *sizes]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINLORA_CACHE", str(root / "cache"))
        base = tiny_models.build("llama", root / "tiny-llama")
        target = Target(
            spec=base_spec(str(base)),
            quantization=Quantization.NONE,
            max_rank=8,
            labels=LABELS,
            prompt_template=TEMPLATE,
        )
        folder = save_adapter(base, root / "peft", seed=5)
        add_folder(AdapterRegistry(root / "registry"), folder, "news", None, target)
        yield World(base, root / "registry")


@pytest.fixture
def predict(world: World) -> Predict:
    """`finlora predict` with the world's engine."""
    return lambda *arguments: main([*map(str, arguments), *world.flags])


@pytest.fixture(scope="session")
def expected(world: World) -> dict[str, dict[str, float]]:
    """Headline -> probabilities, by the engine without files."""
    with Engine(
        str(world.base), registry=world.registry, quantization="none", device="cpu",
        max_model_len=128, kv_cache_bytes=16 << 20,
    ) as engine:  # fmt: skip
        answers = engine.classify(HEADLINES, adapter="news")
    return {h: a.probabilities for h, a in zip(HEADLINES, answers, strict=True)}
