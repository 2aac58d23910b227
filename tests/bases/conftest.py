"""An empty cache, and tiny bases in folders that a test may damage."""

import shutil
from pathlib import Path

import pytest

from tests.tiny_models import build


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that knows no base."""
    folder = tmp_path / "empty-cache"
    monkeypatch.setenv("FINLORA_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def built_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("built") / "tiny-llama")


@pytest.fixture
def llama(built_llama: Path, tmp_path: Path) -> Path:
    """A tiny Llama of this test's own."""
    return Path(shutil.copytree(built_llama, tmp_path / built_llama.name))
