"""Products with a frozen weight, and of its transpose for a backward pass."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from finlora.native.four_bit import PanelWeight, Update


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


def _updated(y: Tensor, update: Update) -> Tensor:
    if update is None:
        return y
    low, columns = update
    return y.addmm_(low.T, columns)
