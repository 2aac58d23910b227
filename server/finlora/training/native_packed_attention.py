"""Attention of packed rows as one operation, by the kernel of packed_attention.c.

It pads nothing and keeps no probabilities: its backward pass makes them again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from finlora.native import library, packed_attention
from finlora.native.packed_attention import Rows, Saved


def can_attend(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """[T, heads, size] and [T, kv heads, size]: whether the kernel takes them on this machine."""
    return (
        query.device.type == "cpu"
        and query.dtype is key.dtype is value.dtype
        and packed_attention.fits(query.shape[1], key.shape[1], query.shape[2], query.dtype)
        and library.obstacle() is None
    )


def attend(query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
    """[T, heads, size], as the query; only what is not contiguous is copied."""
    return _PackedAttention.apply(*(x.contiguous() for x in (query, key, value)), rows)  # type: ignore[no-any-return, no-untyped-call]


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
        saved = packed_attention.attend(query, key, value, rows)
        ctx.save_for_backward(query, key, value, *saved)
        ctx.rows = rows
        return saved.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (dout,) = gradients
        query, key, value, *saved = ctx.saved_tensors
        found = packed_attention.gradients(
            dout.contiguous(), Saved(*saved), query, key, value, ctx.rows
        )
        return *found, None
