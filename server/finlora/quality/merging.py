"""A base with an adapter multiplied into its 16-bit weights, as a folder like any other base."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finlora.adapters.adapter import Adapter
from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.validation import parse_weights
from finlora.bases.locate import locate
from finlora.bases.tensors import weight_files
from finlora.model import base_spec

NOT_COPIED = ("*.safetensors",)


@torch.no_grad()
def merge(model: str, adapter: Adapter, registry: AdapterRegistry, folder: Path) -> Path:
    """W + gamma B A, rounded once to the type that W is stored in. Raises FinLoRAError."""
    source = locate(model)
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    updates = _updates(model, adapter, registry)
    for file in weight_files(source):
        tensors = {name: _merged(name, t, updates) for name, t in load_file(file).items()}
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    return folder


def _updates(model: str, adapter: Adapter, registry: AdapterRegistry) -> dict[str, Tensor]:
    """By the name of the weight that each belongs to."""
    spec = base_spec(model)
    layers = parse_weights(adapter.config, registry.read(adapter), spec, max_rank=adapter.config.r)
    return {
        f"{name}.weight": layer.scaling * (layer.b.float() @ layer.a.float())
        for name, layer in layers.items()
    }


def _merged(name: str, weight: Tensor, updates: dict[str, Tensor]) -> Tensor:
    update = updates.get(name)
    return weight if update is None else (weight.float() + update).to(weight.dtype)
