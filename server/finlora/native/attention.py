"""Attention over the paged KV cache as attention.c has it."""

import ctypes

import torch
from torch import Tensor

from finlora.native.library import DTYPES, LANES, address, load

MAX_HEAD_SIZE = 256
MAX_HEADS_OF_A_KEY = 64


def fits(num_heads: int, num_kv_heads: int, head_size: int, dtype: torch.dtype) -> bool:
    """Whether the kernel takes such heads."""
    return (
        dtype in DTYPES
        and head_size % LANES == 0
        and head_size <= MAX_HEAD_SIZE
        and num_heads <= MAX_HEADS_OF_A_KEY * num_kv_heads
    )


def attend(
    query: Tensor, pool: Tensor, table: Tensor, spans: Tensor, *, window: int | None, scaling: float
) -> Tensor:
    """[T, heads, head size] -> the same, computed in float32.

    The pool [pages, 2, kv heads, head size] holds the keys and values of all positions that are
    read. `table` [sequences, positions] gives their pages, `spans` [n, 4] each sequence's new
    tokens: row of the table, first position, number, first row of the query; both int64. Raises
    KernelsUnusableError.
    """
    assert query.dtype is pool.dtype
    num_tokens, num_heads, size = query.shape
    if query.stride(2) != 1 or query.stride(1) != size:
        query = query.contiguous()
    out = query.new_empty(num_tokens, num_heads, size)
    load().finlora_attention(
        address(query),
        ctypes.c_int64(query.stride(0)),
        address(pool),
        address(table),
        ctypes.c_int64(table.stride(0)),
        address(spans),
        ctypes.c_int64(len(spans)),
        ctypes.c_int64(num_heads),
        ctypes.c_int64(pool.shape[2]),
        ctypes.c_int64(size),
        ctypes.c_int64(window or 0),
        ctypes.c_float(scaling),
        address(out),
        ctypes.c_int(query.dtype is torch.bfloat16),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out
