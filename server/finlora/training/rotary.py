"""Rotary position embedding as one operation that keeps no activations."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from finlora.native import elementwise


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[1, tokens, heads, size] by angles [1, tokens, size]; the halves of a head are pairs, as
    Llama has them (arXiv 2104.09864)."""
    return _Rotation.apply(x, cos, sin)  # type: ignore[no-any-return, no-untyped-call]


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # Both halves of an angle are the same, so the transposed rotation is the one back.
        return _rotated(gradients[0], *ctx.saved_tensors, back=True), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    if elementwise.rotates(x):
        return elementwise.rotate(x, cos, sin, back=back)
    cos, sin = cos[..., None, :], sin[..., None, :]
    y = x * cos
    (first, second), (sin_first, sin_second) = x.chunk(2, -1), sin.chunk(2, -1)
    y_first, y_second = y.chunk(2, -1)
    y_first.addcmul_(second, sin_first, value=1 if back else -1)
    y_second.addcmul_(first, sin_second, value=-1 if back else 1)
    return y
