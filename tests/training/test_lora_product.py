import pytest
import torch
from torch import Tensor

from finlora.training.lora_product import lora_product


def _matrix(*shape: int, learns: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(learns)


@pytest.mark.parametrize("has_bias", [False, True])
def test_gradients_are_the_slopes(has_bias: bool) -> None:
    x, a, b = _matrix(2, 3, 8), _matrix(4, 8), _matrix(6, 4)
    weight = _matrix(6, 8, learns=False)
    bias = _matrix(6, learns=False) if has_bias else None

    def product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return lora_product(x, weight, bias, a, b, 0.7)

    expected = x @ weight.T + 0.7 * x @ a.T @ b.T + (0 if bias is None else bias)
    torch.testing.assert_close(product(x, a, b), expected)
    assert torch.autograd.gradcheck(product, (x, a, b))


def test_masters_stay_in_float32_beside_a_bfloat16_base() -> None:
    x, weight = torch.randn(5, 8).bfloat16(), torch.randn(6, 8).bfloat16()
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    y = lora_product(x, weight, None, a, b, 2.0)
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.dtype is b.grad.dtype is torch.float32
