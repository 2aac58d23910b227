"""Weights in bfloat16 in the panels that half.c reads, and what float32 computes with them."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from finlora.native.four_bit import PANEL
from finlora.native.library import address, load

PARTS = 8  # of half.c
CHUNK_ROWS = 1024  # looked at in one go, so that copies of the whole never stand beside it


class HalfPanels:
    """A weight [out_features, in_features] in bfloat16; out_features is a multiple of 16."""

    def __init__(self, panels: Tensor) -> None:
        """`panels` are [panels, in_features, 16], as `arrange` makes them.

        Raises KernelsUnusableError.
        """
        self.panels = panels
        self.num_panels, self.in_features = panels.shape[0], panels.shape[1]
        self._library = load()

    @classmethod
    def arrange(cls, weight: Tensor) -> "HalfPanels":
        """From [out_features, in_features], rounded where `is_exact` does not hold."""
        out_features, in_features = weight.shape
        apart = weight.detach().view(out_features // PANEL, PANEL, in_features).transpose(1, 2)
        # Converted on the way: nothing but the result takes memory.
        return cls(torch.empty(apart.shape, dtype=torch.bfloat16).copy_(apart))

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.num_panels * PANEL

    @property
    def nbytes(self) -> int:
        """Memory that the weight takes."""
        return self.panels.nbytes

    def product(self, x: Tensor) -> Tensor:
        """x W^T in float32: [n, in_features] -> [n, out_features]; safe from any thread."""
        assert x.dtype is torch.float32
        kernel, shape = self._library.finlora_half_product, (len(x), self.out_features)
        return panels_product(kernel, x, self.panels, self.in_features, shape)

    def product_back(self, y: Tensor) -> Tensor:
        """y W in float32: [n, out_features] -> [n, in_features], a multiple of 16."""
        assert y.dtype is torch.float32
        assert self.in_features % PANEL == 0
        y = y.contiguous()
        shape = y.shape[0], self.in_features
        out, sums = y.new_empty(shape), y.new_empty(PARTS, *shape)
        self._library.finlora_half_product_back(
            address(y),
            ctypes.c_int64(shape[0]),
            ctypes.c_int64(self.in_features),
            address(self.panels),
            ctypes.c_int64(self.num_panels),
            address(sums),
            address(out),
            ctypes.c_int(torch.get_num_threads()),
        )
        return out

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight in float32: [...] -> [..., in_features]."""
        return self.panels[ids // PANEL, :, ids % PANEL].float()


def panels_product(
    kernel: Any, x: Tensor, panels: Tensor, in_features: int, shape: tuple[int, int]
) -> Tensor:
    """x W^T in float32, of a shape, by a kernel that takes rows and a weight in panels."""
    x, out = x.contiguous(), torch.empty(shape, dtype=torch.float32)
    kernel(
        address(x),
        ctypes.c_int64(shape[0]),
        ctypes.c_int64(in_features),
        address(panels),
        ctypes.c_int64(panels.shape[0]),
        address(out),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out


def is_exact(weight: Tensor) -> bool:
    """Whether bfloat16 has every number of a weight [out_features, in_features]."""
    chunks = weight.detach().split(CHUNK_ROWS)
    return all(torch.equal(chunk.bfloat16().to(chunk.dtype), chunk) for chunk in chunks)
