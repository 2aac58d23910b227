from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from finlora.bases.tensors import tensor_entries
from finlora.config import Quantization
from finlora.errors import ConfigError
from finlora.model import LoadedBase
from finlora.training.batches import Example, ExampleEncoder
from finlora.training.config import TrainingConfig
from finlora.training.qera import start_from_error
from finlora.training.workshop import attach_layers
from tests.training.rows import make_rows

FULL_RANK = 64  # the hidden size of the tiny base


@pytest.fixture
def examples(fast: PreTrainedTokenizerFast) -> list[Example]:
    return [ExampleEncoder(fast, 2).encode(row) for row in make_rows()]


@pytest.fixture
def started(
    load: Callable[..., LoadedBase], base_folder: Path, examples: list[Example]
) -> Callable[..., LoadedBase]:
    def start(**fields: Any) -> LoadedBase:
        config = TrainingConfig(init_lora_weights="qera", **fields)
        base = load(config.quantization)
        layers = attach_layers(base, config)
        start_from_error(base, layers, tensor_entries(base_folder), examples)
        return base

    return start


def logits(base: LoadedBase, examples: list[Example]) -> Tensor:
    """[tokens, vocabulary] of rows that no start has seen."""
    with torch.no_grad():
        return torch.cat([base.model(torch.tensor([row.context])).logits[0] for row in examples])


@pytest.mark.parametrize(
    "fields", [{}, {"peft_use_rslora": True, "lora_alpha": 3}, {"peft_use_dora": True}]
)
def test_full_rank_gives_the_16_bit_base_back(
    fields: dict[str, Any],
    started: Callable[..., LoadedBase],
    load: Callable[..., LoadedBase],
    examples: list[Example],
) -> None:
    original = logits(load(Quantization.NONE), examples)
    restored = logits(started(lora_r=FULL_RANK, **fields), examples)
    torch.testing.assert_close(restored, original, atol=1e-3, rtol=1e-3)


def test_a_rank_above_a_layers_size_is_refused(started: Callable[..., LoadedBase]) -> None:
    with pytest.raises(ConfigError, match=r"rank 65 is too high for .*, whose .* 64 at most"):
        started(lora_r=FULL_RANK + 1)


def test_a_low_rank_brings_the_base_nearer_to_16_bits(
    started: Callable[..., LoadedBase], load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    original, quantised = (
        logits(load(kind), examples) for kind in (Quantization.NONE, Quantization.NF4)
    )
    restored = logits(started(lora_r=16, lora_target_modules=["down_proj", "o_proj"]), examples)
    everywhere = logits(started(lora_r=16), examples)
    errors = [(found - original).norm() for found in (quantised, restored, everywhere)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.7 * errors[0]
