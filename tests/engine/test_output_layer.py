"""A replaced output layer gives the same logits, and takes half of the memory where it can."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from finlora.config import DEFAULT_BASE, Quantization
from finlora.engine.output_layer import (
    MAX_ROWS,
    HalfEmbedding,
    HalfLinear,
    TransposedLinear,
    output_layer_bytes,
    replace_output_layer,
)
from finlora.engine.unpacked_layers import replace_unpacked_layers
from finlora.model import load_base, memory_bytes
from finlora.native import library
from tests.engine.conftest import World
from tests.native.kernels import needs_avx512_kernels, needs_kernels

NUM_ROWS = [0, 1, 5, MAX_ROWS, MAX_ROWS + 1]
IDS = torch.tensor([[3, 499, 3, 0, 511]])


def load(world: World, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    model = load_base(str(world.base), Quantization.NONE, dtype=dtype, device="cpu").model
    assert isinstance(model, LlamaForCausalLM)
    return model


def load_exact(world: World, *, tied: bool) -> LlamaForCausalLM:
    """Float32 numbers that bfloat16 has, as in a model that comes in it."""
    model = load(world)
    head, embedding = model.lm_head, model.model.embed_tokens
    with torch.no_grad():
        weight = nn.Parameter(head.weight.bfloat16().float(), requires_grad=False)
        other = nn.Parameter(weight.flip(0), requires_grad=False)
    head.weight, embedding.weight = weight, weight if tied else other
    return model


def check_logits(model: LlamaForCausalLM, before: nn.Linear, num_rows: int) -> None:
    x = torch.randn(1, num_rows, before.in_features)
    with torch.inference_mode():
        torch.testing.assert_close(model.lm_head(x), before(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_the_logits_of_a_transposed_layer(llama: World, num_rows: int) -> None:
    model = load(llama)
    before = model.lm_head
    assert replace_output_layer(model) == 0
    assert isinstance(model.lm_head, TransposedLinear)
    assert model.lm_head.weight is before.weight
    assert output_layer_bytes(model) == before.weight.nbytes
    check_logits(model, before, num_rows)


@needs_kernels
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_the_logits_of_a_layer_kept_in_bfloat16(llama: World, num_rows: int) -> None:
    model = load_exact(llama, tied=True)
    before = model.lm_head
    assert replace_output_layer(model) == before.weight.nbytes // 2 == output_layer_bytes(model)
    assert isinstance(model.lm_head, HalfLinear)
    check_logits(model, before, num_rows)


@needs_kernels
@pytest.mark.parametrize("tied", [True, False])
def test_nothing_is_left_in_float32(llama: World, tied: bool) -> None:
    model = load_exact(llama, tied=tied)
    with torch.inference_mode():
        before = model(IDS).logits
        embedded = model.model.embed_tokens(IDS)
    parts = (model.lm_head, model.model.embed_tokens)
    freed = [weakref.ref(part.weight) for part in parts]
    held = memory_bytes(model)["embeddings"]
    del parts
    assert replace_output_layer(model) == held // 2
    gc.collect()
    assert [ref() for ref in freed] == [None, None]
    assert isinstance(model.model.embed_tokens, HalfEmbedding)
    assert (model.lm_head.panels is model.model.embed_tokens.panels) == tied
    with torch.inference_mode():
        assert torch.equal(model.model.embed_tokens(IDS), embedded)
        torch.testing.assert_close(model(IDS).logits, before, atol=1e-4, rtol=1e-4)
    assert model.dtype is torch.float32
    assert model.lm_head.weight.dtype is model.model.embed_tokens.weight.dtype is torch.float32


def num_mapped_files() -> int:
    return Path("/proc/self/maps").read_text().count("model.safetensors")


@needs_kernels
def test_the_file_that_a_base_was_mapped_from_is_let_go() -> None:
    gc.collect()
    before = num_mapped_files()
    model = load_base(DEFAULT_BASE, Quantization.NF4, dtype=torch.float32, device="cpu").model
    assert num_mapped_files() > before
    replace_unpacked_layers(model)
    assert replace_output_layer(model) > 0
    gc.collect()
    assert num_mapped_files() == before


@needs_kernels
def test_an_untied_embedding_that_is_not_exact_stays(llama: World) -> None:
    model = load_exact(llama, tied=False)
    embedding = model.model.embed_tokens
    with torch.no_grad():
        embedding.weight[7, 7] = 1 + 2**-8
    assert replace_output_layer(model) == output_layer_bytes(model)
    assert isinstance(model.lm_head, HalfLinear)
    assert model.model.embed_tokens is embedding


class ScaledEmbedding(nn.Embedding):
    """As Gemma has it."""


@needs_kernels
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_that_compute_stay(llama: World, tied: bool) -> None:
    """Panels beside a float32 weight that must stay would only take more memory."""
    model = load_exact(llama, tied=tied)
    embedding = ScaledEmbedding(512, 64, _weight=model.model.embed_tokens.weight)
    embedding.weight = model.model.embed_tokens.weight
    model.set_input_embeddings(embedding)
    replace_output_layer(model)
    assert model.model.embed_tokens is embedding
    assert type(model.lm_head) is (TransposedLinear if tied else HalfLinear)


def test_without_kernels_the_weight_stays(llama: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "obstacle", lambda: "none is there")
    model = load_exact(llama, tied=True)
    assert replace_output_layer(model) == 0
    assert isinstance(model.lm_head, TransposedLinear)


@needs_kernels
def test_a_vocabulary_of_no_whole_panels_stays(llama: World) -> None:
    model = load_exact(llama, tied=True)
    model.lm_head.weight = model.model.embed_tokens.weight = nn.Parameter(
        model.lm_head.weight[:-1], requires_grad=False
    )
    assert replace_output_layer(model) == 0
    assert isinstance(model.lm_head, TransposedLinear)


@needs_avx512_kernels
@pytest.mark.parametrize("tied", [True, False])
def test_a_layer_that_computes_in_bfloat16(llama: World, tied: bool) -> None:
    model = load(llama, torch.bfloat16)
    before = model.lm_head
    model.model.embed_tokens.weight = (
        before.weight if tied else nn.Parameter(before.weight.flip(0), requires_grad=False)
    )
    embedded = model.model.embed_tokens(IDS)
    x = torch.randn(1, 7, before.in_features, dtype=torch.bfloat16)
    expected = x.double() @ before.weight.double().T
    assert replace_output_layer(model) == 0
    assert isinstance(model.lm_head, HalfLinear)
    assert output_layer_bytes(model) == before.weight.nbytes
    torch.testing.assert_close(model.lm_head(x).double(), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.model.embed_tokens(IDS), embedded)
    assert isinstance(model.model.embed_tokens, HalfEmbedding) == tied


@pytest.mark.usefixtures("without_avx512_kernels")
def test_without_kernels_for_it_bfloat16_stays(llama: World) -> None:
    model = load(llama, torch.bfloat16)
    before = model.lm_head
    assert replace_output_layer(model) == 0
    assert model.lm_head is before


def test_layers_with_a_bias_are_left_alone(llama: World) -> None:
    model = load(llama)
    model.set_output_embeddings(nn.Linear(4, 4))
    assert replace_output_layer(model) == 0
    assert type(model.lm_head) is nn.Linear
