import pytest
import torch
from torch import Tensor

from finlora.training.frozen import WideWeight
from finlora.training.lora_product import ROWS, Operand, lora_product, lora_products
from finlora.training.recomputed import GatedSiLU

SCALING = 0.7


def _matrix(*shape: int, learns: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(learns)


def _plain(x: Tensor, layer: WideWeight, a: Tensor, b: Tensor) -> Tensor:
    bias = 0 if layer.bias is None else layer.bias
    return x @ layer.weight.T + SCALING * x @ a.T @ b.T + bias


@pytest.mark.parametrize("has_bias", [False, True])
def test_gradients_are_the_slopes(has_bias: bool) -> None:
    x, a, b = _matrix(2, 3, 8), _matrix(4, 8), _matrix(6, 4)
    bias = _matrix(6, learns=False) if has_bias else None
    layer = WideWeight(_matrix(6, 8, learns=False), bias)

    def product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return lora_product(x, Operand(layer, a, b), SCALING)

    torch.testing.assert_close(product(x, a, b), _plain(x, layer, a, b))
    assert torch.autograd.gradcheck(product, (x, a, b))


@pytest.mark.parametrize("ranks", [(4, 2), (3, 0)])
def test_layers_that_read_the_same_rows_are_one_operation(ranks: tuple[int, int]) -> None:
    x, learned = _matrix(2, 3, 8), [(_matrix(r, 8), _matrix(6 + r, r)) for r in ranks]
    layers = [WideWeight(_matrix(6 + r, 8, learns=False)) for r in ranks]

    def products(x: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(layers, flat[::2], flat[1::2], strict=True)
        return lora_products(ROWS, (x,), [Operand(*pair) for pair in pairs], SCALING)

    flat = [matrix for pair in learned for matrix in pair]
    expected = tuple(_plain(x, *pair) for pair in zip(layers, flat[::2], flat[1::2], strict=True))
    torch.testing.assert_close(products(x, *flat), expected)
    assert torch.autograd.gradcheck(products, (x, *flat))


def test_gradients_reach_what_the_rows_are_made_of() -> None:
    gate, up, a, b = _matrix(2, 3, 8), _matrix(3, 2, 8).view(2, 3, 8), _matrix(4, 8), _matrix(6, 4)
    layer = WideWeight(_matrix(6, 8, learns=False))

    def product(gate: Tensor, up: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return lora_products(GatedSiLU(), (gate, up), (Operand(layer, a, b),), SCALING)[0]

    expected = _plain(torch.nn.functional.silu(gate) * up, layer, a, b)
    torch.testing.assert_close(product(gate, up, a, b), expected)
    assert torch.autograd.gradcheck(product, (gate, up, a, b))


def test_rows_that_need_no_gradient_get_none() -> None:
    x, a, b = _matrix(3, 8, learns=False), _matrix(4, 8), _matrix(6, 4)
    layer = WideWeight(_matrix(6, 8, learns=False))
    lora_product(x, Operand(layer, a, b), SCALING).sum().backward()
    assert x.grad is None
    assert a.grad is not None


def test_masters_stay_in_float32_beside_a_bfloat16_base() -> None:
    x, weight = torch.randn(5, 8).bfloat16(), torch.randn(6, 8).bfloat16()
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    y = lora_product(x, Operand(WideWeight(weight), a, b), 2.0)
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.dtype is b.grad.dtype is torch.float32
