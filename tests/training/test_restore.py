from collections.abc import Callable
from typing import Any

import pytest
import torch

from finlora.adapters.peft_config import parse_config
from finlora.errors import AdapterIncompatibleError
from finlora.model import LoadedBase
from finlora.training.adapter_files import AdapterFiles, adapter_files
from finlora.training.config import TrainingConfig
from finlora.training.restore import load_weights
from finlora.training.workshop import attach_layers


def made(load: Callable[..., LoadedBase], **fields: Any) -> AdapterFiles:
    """An adapter with random weights."""
    base, config = load(), TrainingConfig(seed=7, **fields)
    layers = attach_layers(base, config)
    for layer in layers.values():
        torch.nn.init.normal_(layer.b)
    return adapter_files(layers, config, base.spec.name)


@pytest.mark.parametrize("fields", [{}, {"peft_use_dora": True}, {"lora_alpha": 3.0}])
def test_layers_hold_what_the_files_hold(
    load: Callable[..., LoadedBase], fields: dict[str, Any]
) -> None:
    files = made(load, **fields)
    base, config = load(), TrainingConfig(**fields)
    layers = attach_layers(base, config)
    load_weights(layers, parse_config(files.config), files.weights, base.spec)
    assert adapter_files(layers, config, base.spec.name) == files
    assert all(
        layer.a.dtype is torch.float32 and layer.a.requires_grad for layer in layers.values()
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"lora_r": 4}, "rank 8"),
        ({"lora_alpha": 8.0}, "scaling 2"),
        ({"peft_use_dora": True}, "DoRA"),
        ({"lora_target_modules": ["q_proj"]}, "other layers"),
    ],
)
def test_another_kind_of_adapter_is_refused(
    load: Callable[..., LoadedBase], fields: dict[str, Any], reason: str
) -> None:
    files = made(load)
    base = load()
    layers = attach_layers(base, TrainingConfig(**fields))
    with pytest.raises(AdapterIncompatibleError, match=reason):
        load_weights(layers, parse_config(files.config), files.weights, base.spec)
