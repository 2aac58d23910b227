"""A tiny base, adapters that PEFT made for it, and registries to put them in."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finlora.adapters.registry import AdapterRegistry
from finlora.bases.spec import BaseSpec
from finlora.model import base_spec
from tests.adapters.peft_folders import save_adapter
from tests.tiny_models import build

MakeCopy = Callable[[str], Path]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the specs of test bases out of the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def spec(cache: None, base_folder: Path) -> BaseSpec:
    return base_spec(str(base_folder))


@pytest.fixture(scope="session")
def peft_folders(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for each kind of adapter that is served."""
    root = tmp_path_factory.mktemp("peft")
    options: dict[str, dict[str, Any]] = {
        "lora": {},
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
        "patterns": {
            "rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.up_proj": 2},
            "alpha_pattern": {"q_proj": 4},
        },
    }
    return {name: save_adapter(base_folder, root / name, **options[name]) for name in options}


@pytest.fixture
def copy(peft_folders: dict[str, Path], tmp_path: Path) -> MakeCopy:
    """Makes a copy of one of them that a test may damage."""

    def make(kind: str = "lora") -> Path:
        return Path(shutil.copytree(peft_folders[kind], tmp_path / "peft" / kind))

    return make


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "registry", who="test")


@pytest.fixture
def users_defaults(
    monkeypatch: pytest.MonkeyPatch, base_folder: Path, spec: BaseSpec, registry: AdapterRegistry
) -> None:
    """The base and the registry of these tests are the user's defaults."""
    monkeypatch.setenv("FINLORA_MODEL", str(base_folder))
    monkeypatch.setenv("FINLORA_REGISTRY", str(registry.folder))
