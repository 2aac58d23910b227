"""Products of a thin float32 matrix with a large one, as thin.c has them."""

import ctypes

import torch
from torch import Tensor

from finlora.native.library import address, load, obstacle

PANEL = 16  # columns are a multiple of it


def fits(x: Tensor, m: Tensor) -> bool:
    """Whether the kernel can multiply them."""
    return (
        x.dtype is m.dtype is torch.float32
        and m.device.type == "cpu"
        and m.shape[1] % PANEL == 0
        and obstacle() is None
    )


def product(x: Tensor, m: Tensor) -> Tensor:
    """[n, depth] [depth, columns] -> [n, columns]. Raises KernelsUnusableError."""
    x, m = x.contiguous(), m.contiguous()
    out = x.new_empty(len(x), m.shape[1])
    load().finlora_thin_product(
        address(x),
        ctypes.c_int64(len(x)),
        ctypes.c_int64(x.shape[1]),
        address(m),
        ctypes.c_int64(m.shape[1]),
        address(out),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out
