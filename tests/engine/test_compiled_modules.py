"""Norms and MLPs computed by our own kernels give what transformers' own give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finlora.config import Quantization
from finlora.engine.compiled_modules import CompiledMLP, CompiledRMSNorm, compile_modules
from finlora.model import load_base
from finlora.native import library
from tests.engine.conftest import EngineMaker, World
from tests.native.kernels import needs_kernels

NUM_LAYERS = 2  # of the tiny models
IDS = torch.tensor([[5, 9, 200, 31, 77]])


def load(world: World, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    base = load_base(str(world.base), Quantization.NONE, device="cpu", dtype=dtype)
    return base.model


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    output: Tensor = model(input_ids=IDS, use_cache=False).logits
    return output.float()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Qwen3's heads have norms of their own.
@pytest.mark.parametrize(
    ("architecture", "norms"), [("llama", 2), ("mistral", 2), ("qwen2", 2), ("qwen3", 4)]
)
def test_every_norm_and_mlp_is_replaced_and_the_model_computes_the_same(
    worlds: Callable[[str], World], architecture: str, norms: int, dtype: torch.dtype
) -> None:
    model = load(worlds(architecture), dtype)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    before = logits(model)
    assert compile_modules(model) == (norms + 1) * NUM_LAYERS + 1
    assert count(model, CompiledMLP) == NUM_LAYERS
    assert count(model, CompiledRMSNorm) == norms * NUM_LAYERS + 1
    tolerance = 1e-4 if dtype is torch.float32 else 0.05 * before.abs().max().item()
    torch.testing.assert_close(logits(model), before, atol=tolerance, rtol=1e-4)
    assert {n for n, m in model.named_modules() if isinstance(m, nn.Linear)} == linear


@needs_kernels
@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3_text"])
def test_norms_that_add_one_and_gates_of_another_form_stay(
    worlds: Callable[[str], World], architecture: str
) -> None:
    assert compile_modules(load(worlds(architecture))) == 0


class PlusOne(nn.Module):
    """Gemma's norm with Llama's names."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight: Tensor = norm.weight
        self.variance_epsilon: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        unit = x / (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()
        return unit * (1 + self.weight)


@needs_kernels
def test_names_alone_do_not_make_a_norm(llama: World) -> None:
    model = load(llama)
    norm = model.get_submodule("model.norm")
    model.set_submodule("model.norm", PlusOne(norm))
    assert compile_modules(model) == 3 * NUM_LAYERS
    assert isinstance(model.get_submodule("model.norm"), PlusOne)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act_fn", [nn.GELU(), nn.ReLU(), nn.Hardswish(), nn.Mish()])
def test_an_mlp_with_another_gate_stays(
    llama: World, act_fn: nn.Module, dtype: torch.dtype
) -> None:
    model = load(llama, dtype)
    for module in model.modules():
        if hasattr(module, "act_fn"):
            module.act_fn = act_fn
    assert compile_modules(model) == 2 * NUM_LAYERS + 1
    assert count(model, CompiledMLP) == 0


@needs_kernels
def test_what_the_kernels_do_not_take_stays(llama: World) -> None:
    model = load(llama)
    final = model.get_submodule("model.norm")
    model.set_submodule("model.norm", final.to(torch.float64))
    mlp = model.get_submodule("model.layers.0.mlp")
    mlp.gate_proj, mlp.up_proj = nn.Linear(64, 100, bias=False), nn.Linear(64, 100, bias=False)
    mlp.down_proj = nn.Linear(100, 64, bias=False)
    assert compile_modules(model) == 3 * NUM_LAYERS - 1
    assert model.get_submodule("model.norm") is final
    assert model.get_submodule("model.layers.0.mlp") is mlp
    assert compile_modules(load(llama, torch.float16)) == 0


def test_nothing_is_replaced_where_the_kernels_cannot_be_used(
    llama: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "obstacle", lambda: "none is there")
    assert compile_modules(load(llama)) == 0


@needs_kernels
def test_an_engine_computes_with_them(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama)
    model = engine.recorder._runner._model
    assert count(model, CompiledMLP) == NUM_LAYERS
    assert count(model, CompiledRMSNorm) == 2 * NUM_LAYERS + 1
