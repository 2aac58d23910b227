"""Packed four-bit layers without the way through bitsandbytes' Python, which costs more than a
decode step's matrix product: on each of a model's hundreds of layers it looks the kernel up anew
and reads its code book back from the device.

The kernel, the weights and the numbers are bitsandbytes' own.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from bitsandbytes.cextension import lib
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from finlora.engine.wide import StepRows, WidePrompts

KERNELS = {
    "nf4": "gemv_4bit_inference_cpu_nf4_bf16",
    "fp4": "gemv_4bit_inference_cpu_fp4_bf16",
}


class PackedLinear(nn.Module):
    """A packed Linear4bit; bf16 in, bf16 out."""

    def __init__(
        self, weight: Tensor, scales: Tensor, bias: Tensor | None, quant_type: str, block_size: int
    ) -> None:
        """Weight [out_features, in_features / 2], scales [in_features / block_size, out_features].

        Both as bitsandbytes packs them: codes in blocks of 32 output rows, scales transposed.
        """
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.in_features, self.out_features = 2 * weight.shape[1], weight.shape[0]
        self.quant_type, self.block_size = quant_type, block_size
        self._scales = scales
        self._kernel = getattr(lib, KERNELS[quant_type])
        self._arguments = (
            ctypes.c_void_p(weight.data_ptr()),
            ctypes.c_void_p(scales.data_ptr()),
        )
        self._wide: WidePrompts | None = None

    @classmethod
    def of(cls, layer: Linear4bit) -> "PackedLinear":
        """Shares the packed layer's memory."""
        weight: Any = layer.weight
        state = weight.quant_state
        scales = state.absmax.to(torch.bfloat16).contiguous()
        return cls(weight.data, scales, layer.bias, state.quant_type, state.blocksize)

    @classmethod
    def joined(cls, layers: Sequence["PackedLinear"], bias: Tensor | None) -> "PackedLinear":
        """One layer with the outputs of all in a row."""
        first = layers[0]
        return cls(
            torch.cat([layer.weight for layer in layers]),
            torch.cat([layer._scales for layer in layers], dim=1),
            bias,
            first.quant_type,
            first.block_size,
        )

    def widen(self, rows: StepRows) -> int:
        """Keep a 16-bit copy for prompt tokens from now on; its bytes.

        The packed kernel reaches two thirds of the rate of a bf16 product with many rows.
        """
        self._wide = WidePrompts(self._packed, self.in_features, rows)
        return self._wide.nbytes

    def product(self, x: Tensor) -> Tensor:
        """Without the bias, whatever step is at hand: [n, in_features] -> [n, out_features]."""
        return self._packed(x.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        rows = x.reshape(-1, self.in_features).contiguous()
        out = self._packed(rows) if self._wide is None else self._wide.product(rows)
        if self.bias is not None:
            out.add_(self.bias)
        return out.view(*x.shape[:-1], self.out_features)

    def _packed(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.out_features)
        self._run(x, out)
        return out

    def _run(self, x: Tensor, out: Tensor) -> None:
        weight, scales = self._arguments
        # The kernel's integers are 64 bits wide; ctypes would pass Python's as 32.
        self._kernel(
            ctypes.c_int64(len(x)),
            ctypes.c_int64(self.out_features),
            ctypes.c_int64(self.in_features),
            ctypes.c_void_p(x.data_ptr()),
            weight,
            scales,
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int64(self.block_size),
            ctypes.c_int64(self.in_features),  # stride of x's rows
            ctypes.c_int64(self.out_features),  # stride of out's rows
        )


def replace_packed_layers(model: nn.Module) -> int:
    """Put a PackedLinear in place of every packed layer; how many there were."""
    names = [name for name, module in model.named_modules() if _is_packed(module)]
    for name in names:
        model.set_submodule(name, PackedLinear.of(model.get_submodule(name)))  # type: ignore[arg-type]
    return len(names)


def packed_layers(model: nn.Module) -> Iterator[PackedLinear]:
    """Every packed layer of the model."""
    return (module for module in model.modules() if isinstance(module, PackedLinear))


def _is_packed(module: nn.Module) -> bool:
    if not isinstance(module, Linear4bit):
        return False
    weight: Any = module.weight
    packed = getattr(weight.quant_state, "packing_format_for_cpu", False)
    return packed and hasattr(lib, KERNELS[weight.quant_state.quant_type])
