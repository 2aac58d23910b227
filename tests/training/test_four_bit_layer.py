"""Layers of our kernels against bitsandbytes' numbers and torch's gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor

from finlora.bases.dequantization import served_weight
from finlora.model import LoadedBase
from finlora.training.four_bit_layer import FourBitLayer
from finlora.training.lora_layer import plain_weight, project
from finlora.training.lora_product import ROWS, Operand, lora_product
from tests.native.kernels import needs_kernels

pytestmark = needs_kernels
SCALING = 0.7


@pytest.fixture
def pair(load: Callable[..., LoadedBase]) -> tuple[FourBitLayer, Tensor]:
    """A layer with a bias, and its numbers."""
    layer: Any = load().model.get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(layer, Linear4bit)
    layer.bias = torch.nn.Parameter(torch.randn(layer.out_features))
    return FourBitLayer.of(layer), served_weight(layer, packed=False)


def _with_gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, y.shape[-1], dtype=y.dtype)
    return y, *torch.autograd.grad((y * weights).sum(), inputs)


def _assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_product_and_its_gradient(pair: tuple[FourBitLayer, Tensor]) -> None:
    layer, weight = pair
    assert torch.equal(layer.wide(), weight)
    assert torch.equal(plain_weight(layer), weight)
    x = torch.randn(2, 5, layer.in_features, requires_grad=True)
    _assert_equal(_with_gradients(layer(x), x), _with_gradients(F.linear(x, weight, layer.bias), x))


def test_a_product_with_an_update(pair: tuple[FourBitLayer, Tensor]) -> None:
    layer, weight = pair
    a = torch.randn(4, layer.in_features, requires_grad=True)
    b = torch.randn(layer.out_features, 4, requires_grad=True)
    x = torch.randn(2, 5, layer.in_features, requires_grad=True)
    found = lora_product(x, Operand(layer.frozen, a, b), SCALING)
    expected = F.linear(x, weight, layer.bias) + SCALING * x @ a.T @ b.T
    _assert_equal(_with_gradients(found, x, a, b), _with_gradients(expected, x, a, b))


def test_layers_without_an_update_are_one_operation_too(pair: tuple[FourBitLayer, Tensor]) -> None:
    layer, weight = pair
    x = torch.randn(1, 5, layer.in_features, requires_grad=True)
    first, second = project(ROWS, (x,), (layer, layer))
    assert torch.equal(first, second)
    assert type(first.grad_fn).__name__ == "_LoRAProductsBackward"
    expected = F.linear(x, weight, layer.bias)
    _assert_equal(_with_gradients(first + second, x), _with_gradients(2 * expected, x))
