"""Four-bit layers on CPUs with neither kernel: dequantised in every step, a tile at a time.

A tile is small enough to stay in the cache between its dequantisation and its product, so a layer's
16 or 32-bit weights never travel to memory, whatever the size of the model. The dequantisation, its
scales and its numbers are bitsandbytes' own.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.cextension import lib
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from finlora.bases.dequantization import rows_as_stored

KERNELS = {
    ("nf4", torch.float32): "cdequantize_blockwise_cpu_nf4_fp32",
    ("nf4", torch.bfloat16): "cdequantize_blockwise_cpu_nf4_bf16",
    ("fp4", torch.float32): "cdequantize_blockwise_cpu_fp4_fp32",
    ("fp4", torch.bfloat16): "cdequantize_blockwise_cpu_fp4_bf16",
}
TILE_BYTES = 2**20  # half of a common second-level cache


class UnpackedLinear(nn.Module):
    """A four-bit layer whose input and output have its compute type."""

    def __init__(
        self,
        weight: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        *,
        quant_type: str,
        block_size: int,
        dtype: torch.dtype,
    ) -> None:
        """Weight [out_features, in_features / 2], scales [out_features, blocks of a row]."""
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.shape[0], 2 * weight.shape[1]
        self.quant_type, self.block_size, self.dtype = quant_type, block_size, dtype
        self.scales = scales
        self._dequantize = getattr(lib, KERNELS[quant_type, dtype])
        self._num_tile_rows = max(TILE_BYTES // (self.in_features * dtype.itemsize), 1)
        self._wide: Tensor | None = None

    @classmethod
    def of(cls, layer: Linear4bit) -> "UnpackedLinear":
        """Shares the layer's codes. Its scales are written out once: 0.37 bits more a weight."""
        weight: Any = layer.weight
        state = weight.quant_state
        return cls(
            *rows_as_stored(layer),
            layer.bias,
            quant_type=state.quant_type,
            block_size=state.blocksize,
            dtype=layer.compute_dtype,
        )

    @classmethod
    def joined(cls, layers: Sequence["UnpackedLinear"], bias: Tensor | None) -> "UnpackedLinear":
        """One layer with the outputs of all in a row."""
        first = layers[0]
        return cls(
            torch.cat([layer.weight for layer in layers]),
            torch.cat([layer.scales for layer in layers]),
            bias,
            quant_type=first.quant_type,
            block_size=first.block_size,
            dtype=first.dtype,
        )

    def widen(self) -> int:
        """Keep the weights dequantised from now on: the same numbers, faster; the copy's bytes."""
        self._wide = torch.empty(self.out_features, self.in_features, dtype=self.dtype)
        self._write_tile(0, self._wide)
        return self._wide.nbytes

    def product(self, x: Tensor) -> Tensor:
        """Without the bias: [n, in_features] -> [n, out_features]; safe from any thread."""
        if self._wide is not None:
            return F.linear(x, self._wide)
        out = x.new_empty(len(x), self.out_features)
        for columns, tile in self._tiles():
            torch.mm(x, tile.T, out=out[:, columns])
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        out = self.product(x.reshape(-1, self.in_features))
        if self.bias is not None:
            out.add_(self.bias)
        return out.view(*x.shape[:-1], self.out_features)

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Output columns and their weights [rows of the tile, in_features], in one buffer."""
        size = self._num_tile_rows
        buffer = torch.empty(min(size, self.out_features), self.in_features, dtype=self.dtype)
        for start in range(0, self.out_features, size):
            columns = slice(start, min(start + size, self.out_features))
            tile = buffer[: columns.stop - start]
            self._write_tile(start, tile)
            yield columns, tile

    def _write_tile(self, start: int, tile: Tensor) -> None:
        self._dequantize(
            ctypes.c_void_p(self.weight.data_ptr() + start * self.weight.stride(0)),
            ctypes.c_void_p(self.scales.data_ptr() + start * self.scales.stride(0) * 4),
            ctypes.c_void_p(tile.data_ptr()),
            ctypes.c_longlong(self.block_size),
            ctypes.c_longlong(len(tile)),
            ctypes.c_longlong(self.in_features),
        )


def fits(layer: Linear4bit) -> bool:
    """Whether an unpacked layer on a CPU can be computed so; no block may cross two rows."""
    weight: Any = layer.weight
    state = weight.quant_state
    kernel = KERNELS.get((state.quant_type, layer.compute_dtype))
    return layer.in_features % state.blocksize == 0 and kernel is not None and hasattr(lib, kernel)
