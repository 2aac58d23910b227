"""What is cheap enough to be computed again in the backward pass rather than kept: normalised rows
and the gated products inside an MLP, by which a block keeps a third less.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from finlora.native import elementwise


class Recipe(Protocol):
    """A value made from tensors; nothing in it learns."""

    def value(self, *inputs: Tensor) -> Tensor:
        """[..., size] of each -> [..., size]."""

    def back(self, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The value again, and the inputs' gradients; `dy` is its own."""


class Identity:
    """y = x."""

    def value(self, *inputs: Tensor) -> Tensor:
        """Of x."""
        return inputs[0]

    def back(self, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of x."""
        return inputs[0], (dy,)


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """y = w * x / rms(x) for a frozen w; the division in float32 (arXiv 1910.07467)."""

    weight: Tensor
    eps: float

    def value(self, *inputs: Tensor) -> Tensor:
        """Of x."""
        (x,) = inputs
        if elementwise.fits(x):
            return elementwise.rms_norm(x, self.weight, self.eps)
        wide = x.float()
        return (wide * self._inverse(wide)).to(x.dtype) * self.weight

    def back(self, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of x."""
        (x,) = inputs
        if elementwise.fits(x):
            y, dx = elementwise.rms_norm_back(x, dy, self.weight, self.eps)
            return y, (dx,)
        wide = x.float()
        inverse = self._inverse(wide)
        unit = wide * inverse
        y = unit.to(x.dtype) * self.weight
        dy = (dy * self.weight).float()
        # The part of dy along x changes no direction: it is taken out.
        along = (dy * unit).mean(-1, keepdim=True)
        return y, (dy.addcmul_(unit, along, value=-1).mul_(inverse).to(x.dtype),)

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
        return elementwise.gated_silu(gate, up) if elementwise.fits(gate) else F.silu(gate) * up

    def back(self, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of gate and up."""
        gate, up = inputs
        if elementwise.fits(gate):
            y, d_gate, d_up = elementwise.gated_silu_back(gate, up, dy)
            return y, (d_gate, d_up)
        activated = F.silu(gate)
        d_gate = torch.ops.aten.silu_backward(dy * up, gate)
        return activated * up, (d_gate, dy * activated)


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
        _, gradients = ctx.recipe.back(dy[0], *ctx.saved_tensors)
        return None, *gradients
