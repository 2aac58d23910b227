"""A transposed output layer gives the same logits and stays tied to the embedding."""

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from finlora.config import Quantization
from finlora.engine.output_layer import MAX_ROWS, TransposedLinear, transpose_output_layer
from finlora.model import load_base
from tests.engine.conftest import World


def load(world: World, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    model = load_base(str(world.base), Quantization.NONE, dtype=dtype, device="cpu").model
    assert isinstance(model, LlamaForCausalLM)
    return model


@pytest.mark.parametrize("num_rows", [0, 1, 5, MAX_ROWS, MAX_ROWS + 1])
def test_the_logits_are_those_of_the_layer(llama: World, num_rows: int) -> None:
    model = load(llama)
    before = model.lm_head
    assert transpose_output_layer(model)
    assert isinstance(model.lm_head, TransposedLinear)
    assert model.lm_head.weight is before.weight
    x = torch.randn(1, num_rows, before.in_features)
    with torch.inference_mode():
        torch.testing.assert_close(model.lm_head(x), before(x), atol=1e-5, rtol=1e-5)


def test_other_types_and_layers_with_a_bias_are_left_alone(llama: World) -> None:
    assert not transpose_output_layer(load(llama, torch.bfloat16))
    model = load(llama)
    model.set_output_embeddings(nn.Linear(4, 4))
    assert not transpose_output_layer(model)
