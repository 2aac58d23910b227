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
    """A value made from tensors; it has no weights that learn."""

    def value(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The value, and what `gradients` can use of its making."""

    def gradients(self, dy: Tensor, made: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Of the inputs, by that of the value; `made` may be overwritten."""


@dataclass(frozen=True, slots=True)
class Identity:
    """y = x."""

    def value(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing is made."""
        return inputs[0], inputs[0]

    def gradients(self, dy: Tensor, _: Tensor, *__: Tensor) -> tuple[Tensor, ...]:
        """As they come."""
        return (dy,)


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """y = w * x / rms(x) for a frozen w; the division in float32 (arXiv 1910.07467)."""

    weight: Tensor
    eps: float

    def value(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """With 1 / rms(x)."""
        (x,) = inputs
        wide = x.float()
        # One pass; squares of their own would be written and read again.
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return (wide * inverse).to(x.dtype).mul_(self.weight), inverse

    def gradients(self, dy: Tensor, made: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The part of dy along x changes no direction: it is taken out."""
        unit = inputs[0].float() * made
        dy = (dy * self.weight).float()
        along = (dy * unit).mean(-1, keepdim=True)
        return (dy.addcmul_(unit, along, value=-1).mul_(made).to(inputs[0].dtype),)


@dataclass(frozen=True, slots=True)
class GatedSiLU:
    """y = silu(gate) * up."""

    def value(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """With silu(gate)."""
        gate, up = inputs
        activated = F.silu(gate)
        return activated * up, activated

    def gradients(self, dy: Tensor, made: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Of gate and up."""
        gate, up = inputs
        return torch.ops.aten.silu_backward(dy * up, gate), made.mul_(dy)


def compute(recipe: Recipe, *inputs: Tensor) -> Tensor:
    """The recipe's value; its inputs alone are kept."""
    return _Computed.apply(recipe, *inputs)  # type: ignore[no-any-return, no-untyped-call]


class _Computed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recipe: Recipe, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.recipe = recipe
        return recipe.value(*inputs)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _, made = ctx.recipe.value(*ctx.saved_tensors)
        return None, *ctx.recipe.gradients(gradients[0], made, *ctx.saved_tensors)
