"""What is cheap enough to be computed again in the backward pass rather than kept: normalised rows
and the gated products inside an MLP, by which a block keeps a third less.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Recipe(Protocol):
    """A value made from tensors; nothing in it learns."""

    def value(self, *inputs: Tensor) -> Tensor:
        """[..., size] of each -> [..., size]."""

    def gradients(self, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Of the inputs, by that of the value."""


class Identity:
    """y = x."""

    def value(self, *inputs: Tensor) -> Tensor:
        """Of x."""
        return inputs[0]

    def gradients(self, dy: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        """Of x."""
        return (dy,)


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """y = w * x / rms(x) for a frozen w; the division in float32 (arXiv 1910.07467)."""

    weight: Tensor
    eps: float

    def value(self, *inputs: Tensor) -> Tensor:
        """Of x."""
        (x,) = inputs
        wide = x.float()
        return (wide * self._inverse(wide)).to(x.dtype) * self.weight

    def gradients(self, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Of x."""
        (x,) = inputs
        wide = x.float()
        inverse = self._inverse(wide)
        unit = wide * inverse
        dy = (dy * self.weight).float()
        # The part of dy along x changes no direction: it is taken out.
        along = (dy * unit).mean(-1, keepdim=True)
        return (dy.addcmul_(unit, along, value=-1).mul_(inverse).to(x.dtype),)

    def _inverse(self, wide: Tensor) -> Tensor:
        """1 / rms(x). The norm reads x once; squares of their own would be written and read."""
        norm: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        return norm.square_().div_(wide.shape[-1]).add_(self.eps).rsqrt_()


@dataclass(frozen=True, slots=True)
class GatedSiLU:
    """y = silu(gate) * up."""

    def value(self, *inputs: Tensor) -> Tensor:
        """Of gate and up."""
        gate, up = inputs
        return F.silu(gate).mul_(up)

    def gradients(self, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Of gate and up."""
        gate, up = inputs
        return torch.ops.aten.silu_backward(dy * up, gate), F.silu(gate).mul_(dy)


def compute(recipe: Recipe, *inputs: Tensor) -> Tensor:
    """The recipe's value; its inputs alone are kept."""
    return _Computed.apply(recipe, *inputs)  # type: ignore[no-any-return, no-untyped-call]


class _Computed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recipe: Recipe, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.recipe = recipe
        return recipe.value(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.recipe.gradients(dy[0], *ctx.saved_tensors)
