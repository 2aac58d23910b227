"""A tiny base, and one engine over it with two adapters."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from finlora.bench.subject import Subject, subject
from finlora.config import Settings
from tests.tiny_models import build


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("bench") / "tiny-llama")


@pytest.fixture(scope="session")
def settings(base: Path) -> Settings:
    return Settings(model=str(base), device="cpu", kv_cache_bytes=16 * 2**20, max_num_seqs=8)


@pytest.fixture(scope="module")
def made(settings: Settings) -> Iterator[Subject]:
    """Leaves the context only when nothing is left in the engine."""
    with subject(settings, num_adapters=2, rank=4) as tiny:
        yield tiny
