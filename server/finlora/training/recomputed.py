"""What is cheap enough to be computed again in the backward pass rather than kept: normalised rows
and the gated products inside an MLP, by which a block keeps a third less.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Pullback = Callable[[Tensor], tuple[Tensor, ...]]


class Recipe(Protocol):
    """A value made from tensors; nothing in it learns."""

    def value(self, *inputs: Tensor) -> Tensor:
        """[..., size] of each -> [..., size]."""

    def again(self, *inputs: Tensor) -> tuple[Tensor, Pullback]:
        """The value, and what makes the inputs' gradients of its own, once: it may reuse memory."""


class Identity:
    """y = x."""

    def value(self, *inputs: Tensor) -> Tensor:
        """Of x."""
        return inputs[0]

    def again(self, *inputs: Tensor) -> tuple[Tensor, Pullback]:
        """Of x."""
        return inputs[0], lambda dy: (dy,)


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """y = w * x / rms(x) for a frozen w; the division in float32 (arXiv 1910.07467)."""

    weight: Tensor
    eps: float

    def value(self, *inputs: Tensor) -> Tensor:
        """Of x."""
        return self.again(*inputs)[0]

    def again(self, *inputs: Tensor) -> tuple[Tensor, Pullback]:
        """Of x."""
        (x,) = inputs
        wide = x.float()
        inverse = self._inverse(wide)
        unit = wide * inverse

        def pull(dy: Tensor) -> tuple[Tensor, ...]:
            dy = (dy * self.weight).float()
            # The part of dy along x changes no direction: it is taken out.
            along = (dy * unit).mean(-1, keepdim=True)
            return (dy.addcmul_(unit, along, value=-1).mul_(inverse).to(x.dtype),)

        return unit.to(x.dtype) * self.weight, pull

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

    def again(self, *inputs: Tensor) -> tuple[Tensor, Pullback]:
        """Of gate and up."""
        gate, up = inputs
        activated = F.silu(gate)

        def pull(dy: Tensor) -> tuple[Tensor, ...]:
            return torch.ops.aten.silu_backward(dy * up, gate), activated.mul_(dy)

        return activated * up, pull


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
        _, pull = ctx.recipe.again(*ctx.saved_tensors)
        return None, *pull(dy[0])
