"""Products of few float32 rows with a large matrix, as thin.c and thin_rows.c have them."""

import ctypes

import torch
from torch import Tensor

from finlora.native.four_bit import PANEL
from finlora.native.library import LANES, address, load, obstacle


def fits(large: Tensor) -> bool:
    """Whether the kernels can multiply with it, from either side."""
    return (
        large.dtype is torch.float32
        and large.device.type == "cpu"
        and large.shape[1] % PANEL == 0
        and obstacle() is None
    )


def product(few: Tensor, large: Tensor) -> Tensor:
    """[r, n] [n, columns] -> [r, columns]; columns are a multiple of 16.

    Raises KernelsUnusableError.
    """
    assert few.dtype is large.dtype is torch.float32
    assert large.shape[1] % PANEL == 0
    few, large = few.contiguous(), large.contiguous()
    (num_ranks, depth), width = few.shape, large.shape[1]
    out = few.new_empty(num_ranks, width)
    load().finlora_thin_product(
        address(few),
        ctypes.c_int64(num_ranks),
        ctypes.c_int64(depth),
        address(large),
        ctypes.c_int64(width),
        address(out),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out


def product_of_rows(few: Tensor, rows: Tensor) -> Tensor:
    """few rows^T: [r, size] and [n, size] -> [r, n]; the size is a multiple of 8.

    Raises KernelsUnusableError.
    """
    assert few.dtype is rows.dtype is torch.float32
    assert rows.shape[1] % LANES == 0
    few, rows = few.contiguous(), rows.contiguous()
    num_ranks, (num_rows, size) = few.shape[0], rows.shape
    out = few.new_empty(num_ranks, num_rows)
    load().finlora_thin_rows_product(
        address(rows),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(size),
        address(few),
        ctypes.c_int64(num_ranks),
        address(out),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out
