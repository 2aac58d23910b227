from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finlora.config import Quantization
from finlora.model import LoadedBase, load_base
from tests.tiny_models import build
from tests.training.configs import write_config
from tests.training.rows import write_rows


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def load(base_folder: Path) -> Callable[..., LoadedBase]:
    """The tiny base for training, on the CPU."""

    def get(
        quantization: Quantization = Quantization.NF4, dtype: torch.dtype = torch.float32
    ) -> LoadedBase:
        return load_base(str(base_folder), quantization, device="cpu", dtype=dtype, training=True)

    return get


@pytest.fixture
def config_file(tmp_path: Path, base_folder: Path) -> Path:
    """The configuration `verbs`, beside its rows."""
    write_rows(tmp_path / "rows.jsonl")
    return write_config(tmp_path, base_folder)
