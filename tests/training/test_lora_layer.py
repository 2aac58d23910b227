from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from finlora.config import Quantization
from finlora.errors import ConfigError
from finlora.model import LoadedBase
from finlora.training.adapter_files import adapter_files
from finlora.training.config import TrainingConfig
from finlora.training.lora_layer import LoRASettings, plain_weight
from finlora.training.workshop import attach_layers, target_layers

IDS = torch.tensor([[5, 9, 200, 31, 77, 4]])


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_r": 4, "lora_alpha": 8},
        {"lora_r": 4, "lora_alpha": 8, "peft_use_rslora": True},
        {"lora_r": 2, "lora_alpha": 3, "peft_use_dora": True},
        {"lora_r": 3, "lora_target_modules": ["q_proj", "0.mlp.up_proj"], "lora_alpha": 1.5},
        {"lora_r": 4, "init_lora_weights": "gaussian"},
    ],
)
def test_plain_peft_loads_what_was_trained_and_computes_the_same(
    fields: dict[str, Any], load: Callable[..., LoadedBase], base_folder: Path, tmp_path: Path
) -> None:
    config = TrainingConfig(**fields)
    base = load(Quantization.NONE)
    layers = attach_layers(base, config)
    with torch.no_grad():
        for layer in layers.values():
            layer.b.normal_(std=0.1)
            for tensor in (layer.a, layer.b):  # what bfloat16 files can hold
                tensor.copy_(tensor.bfloat16())
            if layer.magnitude is not None:
                layer.magnitude.mul_(1.3).copy_(layer.magnitude.bfloat16())
        ours = base.model(input_ids=IDS).logits

    files = adapter_files(layers, config, base.spec.name)
    (tmp_path / "adapter_config.json").write_bytes(files.config)
    (tmp_path / "adapter_model.safetensors").write_bytes(files.weights)
    plain = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    bare = plain(input_ids=IDS).logits
    model = peft.PeftModel.from_pretrained(plain, tmp_path).float().eval()
    with torch.no_grad():
        theirs = model(input_ids=IDS).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (theirs - bare).abs().max() > 0.1


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_fresh_adapter_changes_nothing(use_dora: bool, load: Callable[..., LoadedBase]) -> None:
    base = load()
    before = base.model(input_ids=IDS).logits
    attach_layers(base, TrainingConfig(peft_use_dora=use_dora))
    torch.testing.assert_close(base.model(input_ids=IDS).logits, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("quantization", list(Quantization))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_divides_by_the_norms_of_the_updated_rows(
    quantization: Quantization, dtype: torch.dtype, load: Callable[..., LoadedBase]
) -> None:
    base = load(quantization, dtype=dtype)
    config = TrainingConfig(lora_r=4, lora_alpha=8, peft_use_dora=True)
    for layer in attach_layers(base, config).values():
        torch.nn.init.normal_(layer.b, std=0.1)
        weight = plain_weight(layer.base) + layer.settings.scaling * layer.b @ layer.a
        # Where numbers are rounded to 8 bits (int8's inputs, bfloat16) the cross term is too.
        exact = dtype is torch.float32 and quantization is not Quantization.INT8
        torch.testing.assert_close(
            layer.row_norms(), weight.norm(dim=1), rtol=1e-4 if exact else 5e-3, atol=0
        )


def test_masters_are_float32_under_a_bfloat16_base(load: Callable[..., LoadedBase]) -> None:
    base = load(Quantization.NONE, dtype=torch.bfloat16)
    layers = attach_layers(base, TrainingConfig())
    assert base.model(input_ids=IDS).logits.dtype is torch.bfloat16
    assert {layer.a.dtype for layer in layers.values()} == {torch.float32}


def test_the_start_depends_on_the_seed_alone(load: Callable[..., LoadedBase]) -> None:
    def start(seed: int) -> torch.Tensor:
        layers = attach_layers(load(), TrainingConfig(seed=seed))
        return torch.cat([layer.a.flatten() for layer in layers.values()])

    torch.manual_seed(1)
    first = start(0)
    torch.manual_seed(2)
    assert torch.equal(first, start(0))
    assert not torch.equal(first, start(1))


def test_scaling() -> None:
    assert LoRASettings(rank=4, alpha=8).scaling == 2
    assert LoRASettings(rank=4, alpha=8, use_rslora=True).scaling == 4


def test_targets_are_layer_names_or_their_ends(load: Callable[..., LoadedBase]) -> None:
    spec = load().spec
    assert target_layers(spec, "all-linear") == list(spec.linear_layers)
    names = target_layers(spec, ["v_proj", "layers.0.mlp.up_proj"])
    assert names == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    with pytest.raises(ConfigError, match="'proj'"):
        target_layers(spec, ["q_proj", "proj"])
