"""Four-bit layers on CPUs with AVX512_BF16, computed by our own kernel.

It multiplies the same numbers as bitsandbytes' packed kernel, in about the time that a bf16 product
of large matrices takes with the same instructions; see native/four_bit_avx512.c.
"""

from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from finlora.bases.dequantization import rows_as_stored
from finlora.engine.wide import StepRows, WidePrompts
from finlora.native import library
from finlora.native.paired import MAX_BLOCK_SIZE, PANEL, PairedWeight


class PairedLinear(nn.Module):
    """A four-bit layer; bf16 in, bf16 out."""

    def __init__(self, panels: PairedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.panels = panels
        self.weight = panels.codes  # for model code that looks at its device
        self.scales = panels.scales
        self.bias = bias
        self.in_features, self.out_features = panels.in_features, panels.out_features
        self._wide: WidePrompts | None = None

    @classmethod
    def of(cls, layer: Linear4bit) -> "PairedLinear":
        """Takes as much memory for the codes; scales take 0.12 bits more a weight."""
        weight: Any = layer.weight
        return cls(
            PairedWeight.arrange(*rows_as_stored(layer), weight.quant_state.code), layer.bias
        )

    @classmethod
    def joined(cls, layers: Sequence["PairedLinear"], bias: Tensor | None) -> "PairedLinear":
        """One layer with the outputs of all in a row."""
        return cls(PairedWeight.joined([layer.panels for layer in layers]), bias)

    @property
    def computes_alone(self) -> bool:
        """Whether all products are the kernel's."""
        return self._wide is None

    def widen(self, rows: StepRows) -> int:
        """Keep a 16-bit copy for prompt tokens where the CPU has AMX; its bytes.

        Only there does the library multiply many rows faster.
        """
        if not torch.cpu.get_capabilities().get("amx_bf16", False):
            return 0
        self._wide = WidePrompts(self.panels.product, self.in_features, rows)
        return self._wide.nbytes

    def product(self, x: Tensor) -> Tensor:
        """Without the bias: [n, in_features] -> [n, out_features]; safe from any thread."""
        return self.panels.product(x)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        flat = x.reshape(-1, self.in_features)
        out = self.panels.product(flat) if self._wide is None else self._wide.product(flat)
        if self.bias is not None:
            out.add_(self.bias)
        return out.view(*x.shape[:-1], self.out_features)


def fits(layer: Linear4bit) -> bool:
    """Whether a layer that would be packed can be computed so; no block may cross two rows."""
    weight: Any = layer.weight
    block_size = weight.quant_state.blocksize
    return (
        layer.support_avx512bf16_for_cpu
        and layer.compute_dtype is torch.bfloat16
        and layer.out_features % PANEL == 0
        and layer.in_features % block_size == 0
        and block_size <= MAX_BLOCK_SIZE
        and library.avx512_obstacle() is None
    )
