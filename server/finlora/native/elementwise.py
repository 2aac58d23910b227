"""RMSNorm and the gated product of an MLP on CPUs with AVX2, one call each; see elementwise.c."""

import ctypes

import torch
from torch import Tensor

from finlora.native.library import DTYPES, LANES, address, load


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * (x / rms(x)), [..., size] of one type with the weight.

    Rounded before the weight too, as Llama's is. Raises KernelsUnusableError.
    """
    _check(x, weight)
    x = x.contiguous()
    out = torch.empty_like(x)
    size = x.shape[-1]
    load().finlora_rms_norm(
        address(x),
        ctypes.c_int64(x.numel() // size),
        ctypes.c_int64(size),
        address(weight),
        ctypes.c_float(eps),
        address(out),
        x.dtype is torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [..., rows, size]; quickest as halves of one joined output.

    Rounded before `up` too, as torch.nn.functional.silu(gate) is. Raises KernelsUnusableError.
    """
    _check(gate, up)
    assert gate.shape == up.shape
    size, stride = gate.shape[-1], gate.stride(-2)
    if not (_is_regular(gate) and gate.stride() == up.stride()):
        gate, up, stride = gate.contiguous(), up.contiguous(), size
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    load().finlora_gated_silu(
        address(gate),
        address(up),
        ctypes.c_int64(gate.numel() // size),
        ctypes.c_int64(size),
        ctypes.c_int64(stride),
        address(out),
        gate.dtype is torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def _is_regular(x: Tensor) -> bool:
    """Whether one stride leads from every row to the next, and rows have no gaps."""
    return x.stride(-1) == 1 and x.numel() == x.shape[-2] * x.shape[-1]


def _check(x: Tensor, other: Tensor) -> None:
    assert x.dtype in DTYPES
    assert x.dtype is other.dtype
    assert x.shape[-1] == other.shape[-1]
    assert x.shape[-1] % LANES == 0
