"""Copies in the kernel's own layout give what a plain product gives; prompts use them, generated
tokens never do."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM

from finlora.adapters.registry import AdapterRegistry
from finlora.bases.dequantization import served_weight
from finlora.config import DEFAULT_BASE, Quantization
from finlora.engine.packed_linear import PackedLinear, packed_layers
from finlora.engine.wide import StepRows, WideLinear, WideWeight, widen_output_layer
from finlora.model import load_base, pack
from tests.engine.conftest import World
from tests.engine.harness import GREEDY, EngineUnderTest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_same_bits_as_a_plain_product_whatever_the_number_of_rows(dtype: torch.dtype) -> None:
    weight = torch.randn(96, 128, dtype=dtype)
    wide = WideWeight(weight)
    x = torch.randn(300, 128, dtype=dtype)
    for num_rows in (1, 2, 33, 300):
        with torch.inference_mode():
            assert torch.equal(wide.product(x[:num_rows]), F.linear(x[:num_rows], weight))


def test_the_output_layer_is_copied_and_still_tied(llama: World) -> None:
    model = load_base(str(llama.base), Quantization.NONE, dtype=torch.bfloat16).model
    assert isinstance(model, LlamaForCausalLM)
    before = model.lm_head
    assert widen_output_layer(model) == before.weight.nbytes
    assert isinstance(model.lm_head, WideLinear)
    assert model.lm_head.weight is before.weight
    for num_rows in (0, 5):  # a step in which no sequence samples has no rows
        x = torch.randn(1, num_rows, before.in_features, dtype=torch.bfloat16)
        with torch.inference_mode():
            assert torch.equal(model.lm_head(x), before(x))


def test_an_output_layer_with_a_bias_is_left_alone(llama: World) -> None:
    model = load_base(str(llama.base), Quantization.NONE, dtype=torch.bfloat16).model
    model.set_output_embeddings(nn.Linear(4, 4))
    assert widen_output_layer(model) == 0


def test_rows_of_generated_tokens_stay_with_the_packed_kernel(llama: World) -> None:
    base = load_base(str(llama.base), Quantization.NF4, dtype=torch.bfloat16)
    layer = base.model.get_submodule("model.layers.0.mlp.down_proj")
    weight = served_weight(layer, packed=True).bfloat16()  # type: ignore[arg-type]
    if not pack(base.model):
        pytest.skip("this CPU has no packed kernel")
    packed = PackedLinear.of(layer)  # type: ignore[arg-type]
    x = torch.randn(20, packed.in_features, dtype=torch.bfloat16)
    with torch.inference_mode():
        before = packed(x)
        rows = StepRows()
        assert packed.widen(rows) == weight.nbytes
        for rows.num_decodes in (0, 7, 20):
            expected = torch.cat(
                (before[: rows.num_decodes], F.linear(x, weight)[rows.num_decodes :])
            )
            assert torch.equal(packed(x), expected)
        assert not torch.equal(before, F.linear(x, weight)), "the paths cannot be told apart"


@pytest.mark.usefixtures("without_avx512_kernels")
def test_served_with_copies_a_request_is_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    base = load_base(DEFAULT_BASE, Quantization.NF4)
    engine = EngineUnderTest(base, AdapterRegistry(tmp_path), wide_copies=True)
    try:
        if not list(packed_layers(base.model)):
            pytest.skip("this CPU has no packed kernel")
        assert "base_wide" in engine.engine.stats().memory_bytes
        prompts = [engine.tokenizer.encode(f"Profit rose {i} % at Norvane" * (i + 1)).ids
                   for i in range(6)]  # fmt: skip
        together = engine.run([(prompt, None) for prompt in prompts])
        for prompt, (tokens, logits) in zip(prompts, together, strict=True):
            tokens_alone, logits_alone = engine.run([(prompt, None)], GREEDY, cache_salt="alone")[0]
            assert tokens == tokens_alone
            # The library's product of one row differs in a last bit, once in some 100,000 numbers.
            torch.testing.assert_close(logits, logits_alone, atol=0.25, rtol=0)
    finally:
        engine.close()
