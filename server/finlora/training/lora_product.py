"""A frozen layer's product and its LoRA update as one operation with one backward pass.

Autograd by itself keeps the update's intermediate results, copies the layer's output to add to it,
and writes two gradients of the input that it then adds up.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def lora_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """[..., in] -> [..., out]: frozen weight [out, in] and bias; a [r, in] and b [out, r] learn."""
    product: Tensor = _LoRAProduct.apply(x, weight, bias, a, b, scaling)  # type: ignore[no-untyped-call]
    return product


class _LoRAProduct(torch.autograd.Function):
    """y = x W^T + bias + scaling * (x A^T) B^T."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        down, up = a.to(x.dtype), (b * scaling).to(x.dtype)
        y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        y.addmm_(rows @ down.T, up.T)
        ctx.save_for_backward(rows, weight, a, b)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # What has rank r is computed again rather than kept.
        rows, weight, a, b = ctx.saved_tensors
        down, up = a.to(rows.dtype), (b * ctx.scaling).to(rows.dtype)
        dy = gradients[0].reshape(-1, gradients[0].shape[-1])
        through = dy @ up  # [rows, r]
        da = (through.T @ rows).to(a.dtype)
        # The transposed product runs twice as fast on a CPU.
        db = ((rows @ down.T).T @ dy).T.to(b.dtype) * ctx.scaling
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.addmm(dy @ weight, through, down).view(*gradients[0].shape[:-1], -1)
        return dx, None, None, da, db, None
