"""Rotary embedding of new tokens on their way into the KV cache, as rotary.c has it."""

import ctypes

import torch
from torch import Tensor

from finlora.native.library import address, load

PAIRED_LANES = 16  # a head has a multiple of so many numbers


def rotate_and_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    angles: tuple[Tensor, Tensor],
    pool: Tensor,
    pages: Tensor,
) -> None:
    """Rotate query [T, heads, size] in place; put key, rotated, and value [T, kv heads, size] into
    the pool [pages, 2, kv heads, size] at `pages` [T].

    Heads of a token are neighbours in memory. `angles` are cosines and sines [T, size]. Raises
    KernelsUnusableError.
    """
    assert all(t.stride(2) == 1 and t.stride(1) == t.shape[2] for t in (query, key, value))
    assert {t.dtype for t in (key, value, *angles)} == {query.dtype} == {pool.dtype}
    cos, sin = (angle.contiguous() for angle in angles)
    num_tokens, num_heads, size = query.shape
    load().finlora_rotate_and_store(
        *(item for t in (query, key, value) for item in (address(t), ctypes.c_int64(t.stride(0)))),
        ctypes.c_int64(num_tokens),
        ctypes.c_int64(num_heads),
        ctypes.c_int64(key.shape[1]),
        ctypes.c_int64(size),
        address(cos),
        address(sin),
        address(pool),
        address(pages),
        ctypes.c_int(query.dtype is torch.bfloat16),
        ctypes.c_int(torch.get_num_threads()),
    )
