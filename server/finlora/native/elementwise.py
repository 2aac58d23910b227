"""RMSNorm, the gated product of an MLP and rotary embedding, one call each; see elementwise.c."""

import ctypes

import torch
from torch import Tensor

from finlora.native.library import DTYPES, LANES, address, load, obstacle


def fits(x: Tensor) -> bool:
    """Whether the norm and the product take rows [..., size] like these."""
    return (
        x.dtype in DTYPES
        and x.device.type == "cpu"
        and x.shape[-1] % LANES == 0
        and obstacle() is None
    )


def rotates(x: Tensor) -> bool:
    """Whether `rotate` takes heads [..., size] like these."""
    return fits(x) and x.shape[-1] % (2 * LANES) == 0


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


def rms_norm_back(x: Tensor, dy: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rms_norm(x, weight, eps)`, and the gradient of x; `dy` is that of the result."""
    _check(x, weight)
    assert x.shape == dy.shape
    x, dy = x.contiguous(), dy.contiguous()
    y, dx = torch.empty_like(x), torch.empty_like(x)
    size = x.shape[-1]
    load().finlora_rms_norm_back(
        address(x),
        address(dy),
        ctypes.c_int64(x.numel() // size),
        ctypes.c_int64(size),
        address(weight),
        ctypes.c_float(eps),
        address(y),
        address(dx),
        x.dtype is torch.bfloat16,
        torch.get_num_threads(),
    )
    return y, dx


def gated_silu_back(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`gated_silu(gate, up)`, and the gradients of gate and up; `dy` is that of the result."""
    _check(gate, up)
    assert gate.shape == up.shape == dy.shape
    gate, up, dy = gate.contiguous(), up.contiguous(), dy.contiguous()
    results = torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate)
    load().finlora_gated_silu_back(
        address(gate),
        address(up),
        address(dy),
        ctypes.c_int64(gate.numel()),
        *map(address, results),
        gate.dtype is torch.bfloat16,
        torch.get_num_threads(),
    )
    return results


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """x [..., T, heads, size] turned by angles [..., T, size], or back; halves of a head are pairs.

    The size is a multiple of 16, and both halves of an angle are the same.
    """
    assert x.dtype is cos.dtype is sin.dtype
    assert rotates(x)
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    num_heads, size = x.shape[-2:]
    assert x.numel() == cos.numel() * num_heads
    y = torch.empty_like(x)
    load().finlora_rotate(
        address(x),
        ctypes.c_int64(cos.numel() // size),
        ctypes.c_int64(num_heads),
        ctypes.c_int64(size),
        address(cos),
        address(sin),
        ctypes.c_float(-1.0 if back else 1.0),
        address(y),
        x.dtype is torch.bfloat16,
        torch.get_num_threads(),
    )
    return y


def _is_regular(x: Tensor) -> bool:
    """Whether one stride leads from every row to the next, and rows have no gaps."""
    return x.stride(-1) == 1 and x.numel() == x.shape[-2] * x.shape[-1]


def _check(x: Tensor, other: Tensor) -> None:
    assert x.dtype in DTYPES
    assert x.dtype is other.dtype
    assert x.shape[-1] == other.shape[-1]
    assert x.shape[-1] % LANES == 0
