from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from finlora.config import Quantization
from finlora.model import load_base
from finlora.training.fused import FusedMLP, FusedRMSNorm, fuse
from tests.tiny_models import build


def _with_gradient(module: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of the input, for an uneven sum of the output."""
    x = rows.clone().requires_grad_()
    y: Tensor = module(x)
    (y.float() * torch.linspace(-1, 2, y.shape[-1])).sum().backward()
    assert x.grad is not None
    return y, x.grad


def _norm() -> LlamaRMSNorm:
    norm = LlamaRMSNorm(24, eps=1e-5)
    nn.init.normal_(norm.weight)
    return norm.requires_grad_(False)


def _mlp() -> LlamaMLP:
    config = LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=4)
    return LlamaMLP(config).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("make", "fused"), [(_norm, FusedRMSNorm), (_mlp, FusedMLP)])
def test_values_and_gradients_are_the_librarys(
    make: Any, fused: type[nn.Module], dtype: torch.dtype
) -> None:
    torch.manual_seed(3)
    module = make().to(dtype)
    rows = torch.randn(2, 5, 24).to(dtype)
    expected, expected_gradient = _with_gradient(module, rows)
    got, gradient = _with_gradient(fused(module), rows)
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(gradient, expected_gradient, atol=tolerance, rtol=tolerance)


# Qwen's heads have norms of their own; Gemma's norms add one to their weight, its gate is a GELU.
@pytest.mark.parametrize(("architecture", "per_layer"), [("llama", 3), ("qwen3", 5), ("gemma2", 0)])
def test_only_what_agrees_is_replaced(architecture: str, per_layer: int, tmp_path: Path) -> None:
    folder = build(architecture, tmp_path / architecture)
    base = load_base(str(folder), Quantization.NONE, device="cpu", dtype=torch.float32)
    names = {name for name, _ in base.model.named_modules()}
    ids = torch.tensor([[5, 9, 200, 31, 77]])
    before = base.model(input_ids=ids).logits
    num_layers = base.model.config.num_hidden_layers
    last_norm = 1 if per_layer else 0
    assert fuse(base.model) == per_layer * num_layers + last_norm
    torch.testing.assert_close(base.model(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)
    layers = {name for name, module in base.model.named_modules() if isinstance(module, nn.Linear)}
    assert layers <= names
