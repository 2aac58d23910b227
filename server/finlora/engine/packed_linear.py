"""Packed four-bit layers without the way through bitsandbytes' Python, which costs more than a
decode step's matrix product: on each of a model's hundreds of layers it looks the kernel up anew
and reads its code book back from the device.

The kernel, the weights and the numbers are bitsandbytes' own.
"""

import ctypes
from typing import Any

import torch
from bitsandbytes.cextension import lib
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

KERNELS = {
    "nf4": "gemv_4bit_inference_cpu_nf4_bf16",
    "fp4": "gemv_4bit_inference_cpu_fp4_bf16",
}


class PackedLinear(nn.Module):
    """A packed Linear4bit; bf16 in, bf16 out. Shares the layer's memory."""

    def __init__(self, layer: Linear4bit) -> None:
        super().__init__()
        weight: Any = layer.weight
        state = weight.quant_state
        self.weight = weight
        self.bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._scales = state.absmax.to(torch.bfloat16).contiguous()
        self._kernel = getattr(lib, KERNELS[state.quant_type])
        self._sizes = (ctypes.c_int64(self.out_features), ctypes.c_int64(self.in_features))
        self._pointers = (
            ctypes.c_void_p(self.weight.data_ptr()),
            ctypes.c_void_p(self._scales.data_ptr()),
        )
        self._block_size = ctypes.c_int64(state.blocksize)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if not x.is_contiguous():
            x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], self.out_features))
        num_out, num_in = self._sizes
        weight, scales = self._pointers
        self._kernel(
            ctypes.c_int64(x.numel() // self.in_features),
            num_out,
            num_in,
            ctypes.c_void_p(x.data_ptr()),
            weight,
            scales,
            ctypes.c_void_p(out.data_ptr()),
            self._block_size,
            num_in,  # stride of x's rows
            num_out,  # stride of out's rows
        )
        return out if self.bias is None else out.add_(self.bias)


def replace_packed_layers(model: nn.Module) -> int:
    """Put a PackedLinear in place of every packed layer; how many there were."""
    names = [name for name, module in model.named_modules() if _is_packed(module)]
    for name in names:
        parent, _, attribute = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, attribute, PackedLinear(getattr(owner, attribute)))
    return len(names)


def _is_packed(module: nn.Module) -> bool:
    if not isinstance(module, Linear4bit):
        return False
    weight: Any = module.weight
    packed = getattr(weight.quant_state, "packing_format_for_cpu", False)
    return packed and hasattr(lib, KERNELS[weight.quant_state.quant_type])
