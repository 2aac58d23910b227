"""Four-bit layers on CPUs with AVX2 but without the packed kernel, computed by our own.

It dequantises a few output features at a time into the first-level cache and multiplies them there;
see native/four_bit.c. The weights are bit for bit those that bitsandbytes' dequantisation gives.
"""

from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from finlora.bases.dequantization import rows_as_stored
from finlora.native import library
from finlora.native.four_bit import PANEL, PanelWeight

# Where torch multiplies with AVX512 it is faster than our AVX2 from about this many rows on, even
# when the weights are written out for it.
MAX_ROWS_BESIDE_AVX512 = 64
TILE_BYTES = 2**20  # of weights written out at a time: half of a common second-level cache


class PanelLinear(nn.Module):
    """A four-bit layer; float32 in, float32 out."""

    def __init__(self, panels: PanelWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.panels = panels
        self.weight = panels.codes  # for model code that looks at its device
        self.scales = panels.scales
        self.bias = bias
        self.in_features, self.out_features = panels.in_features, panels.out_features
        self.max_rows = max_rows()
        self._wide: Tensor | None = None

    @classmethod
    def of(cls, layer: Linear4bit) -> "PanelLinear":
        """Takes as much memory for the codes; scales are written out, 0.37 bits more a weight."""
        return cls(panels_of(layer), layer.bias)

    @classmethod
    def joined(cls, layers: Sequence["PanelLinear"], bias: Tensor | None) -> "PanelLinear":
        """One layer with the outputs of all in a row."""
        return cls(PanelWeight.joined([layer.panels for layer in layers]), bias)

    @property
    def computes_alone(self) -> bool:
        """Whether the products of few rows are all the kernel's."""
        return True

    def widen(self) -> int:
        """Keep the weights dequantised for what the kernel is too slow for; the copy's bytes."""
        if self.max_rows is None:
            return 0
        self._wide = self.panels.transposed(slice(0, self.panels.num_panels))
        return self._wide.nbytes

    def product(self, x: Tensor) -> Tensor:
        """Without the bias: [n, in_features] -> [n, out_features]; safe from any thread."""
        if self.max_rows is None or len(x) <= self.max_rows:
            return self.panels.product(x)
        return self._tiled_product(x) if self._wide is None else x @ self._wide

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        out = self.product(x.reshape(-1, self.in_features))
        if self.bias is not None:
            out.add_(self.bias)
        return out.view(*x.shape[:-1], self.out_features)

    def _tiled_product(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.out_features)
        step = max(TILE_BYTES // (self.in_features * PANEL * x.itemsize), 1)
        for start in range(0, self.panels.num_panels, step):
            tile = slice(start, min(start + step, self.panels.num_panels))
            columns = slice(tile.start * PANEL, tile.stop * PANEL)
            torch.mm(x, self.panels.transposed(tile), out=out[:, columns])
        return out


def panels_of(layer: Linear4bit) -> PanelWeight:
    """The codes of an unpacked layer as the kernel reads them."""
    weight: Any = layer.weight
    return PanelWeight.arrange(*rows_as_stored(layer), weight.quant_state.code)


def max_rows() -> int | None:
    """Rows up to which the kernel is the fastest way here; None: always."""
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return MAX_ROWS_BESIDE_AVX512 if has_avx512 else None


def fits(layer: Linear4bit) -> bool:
    """Whether an unpacked layer on a CPU can be computed so; no block may cross two rows."""
    weight: Any = layer.weight
    block_size = weight.quant_state.blocksize
    return (
        layer.compute_dtype is torch.float32
        and layer.out_features % PANEL == 0
        and layer.in_features % block_size == 0
        and library.obstacle() is None
    )
