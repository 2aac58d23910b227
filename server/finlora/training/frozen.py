"""Products with a frozen weight, and of its transpose for a backward pass."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from finlora.native.four_bit import PanelWeight, Update
from finlora.native.half import HalfPanels


class Frozen(Protocol):
    """A weight [out, in] that never learns, with its bias, in one of the forms below.

    An `update` of low rank is added: low^T columns, of [ranks, n] and [ranks, columns].
    """

    def product(self, x: Tensor, update: Update) -> Tensor:
        """x W^T + bias: [n, in] -> [n, out]."""

    def product_back(self, y: Tensor, update: Update, onto: Tensor | None) -> Tensor:
        """y W: [n, out] -> [n, in]; added in place where there is `onto`."""


class WideWeight(NamedTuple):
    """In the type that is computed in; torch multiplies."""

    weight: Tensor
    bias: Tensor | None = None

    def product(self, x: Tensor, update: Update) -> Tensor:
        """As `Frozen` says."""
        transposed = self.weight.T
        y = x @ transposed if self.bias is None else torch.addmm(self.bias, x, transposed)
        return _updated(y, update)

    def product_back(self, y: Tensor, update: Update, onto: Tensor | None) -> Tensor:
        """As `Frozen` says."""
        x = y @ self.weight if onto is None else onto.addmm_(y, self.weight)
        return _updated(x, update)


class FourBitWeight(NamedTuple):
    """In four bits, on a CPU whose kernels are ours: never larger than a part of a cache."""

    panels: PanelWeight
    bias: Tensor | None = None

    def product(self, x: Tensor, update: Update) -> Tensor:
        """As `Frozen` says."""
        y = self.panels.product(x, update)
        return y if self.bias is None else y.add_(self.bias)

    def product_back(self, y: Tensor, update: Update, onto: Tensor | None) -> Tensor:
        """As `Frozen` says."""
        return self.panels.product_back(y, update, onto)


class HalfWeight(NamedTuple):
    """In bfloat16, on a CPU that computes in float32."""

    panels: HalfPanels

    def product(self, x: Tensor, update: Update) -> Tensor:
        """As `Frozen` says."""
        return _updated(self.panels.product(x), update)

    def product_back(self, y: Tensor, update: Update, onto: Tensor | None) -> Tensor:
        """As `Frozen` says."""
        x = self.panels.product_back(y)
        return _updated(x if onto is None else onto.add_(x), update)


def frozen_product(x: Tensor, layer: Frozen) -> Tensor:
    """x W^T + bias with its gradient: [..., in] -> [..., out]."""
    return _Product.apply(x, layer)  # type: ignore[no-any-return, no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Frozen) -> Tensor:
        ctx.layer = layer
        return layer.product(x.flatten(0, -2), None).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (dy,) = gradients
        dx = ctx.layer.product_back(dy.flatten(0, -2), None, None)
        return dx.view(*dy.shape[:-1], -1), None


def _updated(y: Tensor, update: Update) -> Tensor:
    if update is None:
        return y
    low, columns = update
    return y.addmm_(low.T, columns)
