"""One engine over a tiny base in 16 bits, with adapters made by PEFT."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finlora import Engine
from tests import tiny_models
from tests.adapters.peft_folders import save_adapter

LABELS = ("negative", "neutral", "positive")
TEMPLATE = "Instruction: What is the sentiment of this news?\nInput: {input}\nAnswer: "


@dataclass(frozen=True)
class Folders:
    """A base, and an adapter for it as PEFT saves it."""

    base: Path
    adapter: Path
    registry: Path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    root = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINLORA_CACHE", str(root / "cache"))
        base = tiny_models.build("llama", root / "tiny-llama")
        adapter = save_adapter(base, root / "peft", seed=3)
        yield Folders(base, adapter, root / "registry")


def make_engine(folders: Folders, **settings: Any) -> Engine:
    """An engine in 16 bits, or 32 where the CPU has no bfloat16."""
    return Engine(
        str(folders.base),
        registry=folders.registry,
        quantization="none",
        device="cpu",
        max_model_len=128,
        kv_cache_bytes=16 << 20,
        **settings,
    )


@pytest.fixture(scope="session")
def shared_engine(folders: Folders) -> Iterator[Engine]:
    with make_engine(folders) as engine:
        engine.add_adapter(folders.adapter, name="news", labels=LABELS, template=TEMPLATE)
        yield engine


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    yield shared_engine
    shared_engine._runner.engine.check_idle()
