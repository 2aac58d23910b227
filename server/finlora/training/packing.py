"""A training batch as one row of tokens: those that all rows start with, then what follows in each.

Nothing is padded but what attention reads: there a row stands beside others, head by head, and may
see the shared tokens before its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Packing:
    """P shared tokens, then rows of so many tokens each: T in all."""

    num_shared: int
    row_lengths: tuple[int, ...]
    _layouts: "dict[tuple[int, bool], Layout]" = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.row_lengths)

    def positions(self, device: torch.device) -> Tensor:
        """[1, T]: place of each token in its own row."""
        whole = torch.arange(self.num_shared + max(self.row_lengths), device=device)
        own = whole[self.num_shared :]
        return torch.cat((whole[: self.num_shared], *(own[:n] for n in self.row_lengths)))[None]

    def layout(self, num_heads: int, device: torch.device, *, sees_shared: bool) -> "Layout":
        """Of queries, or of keys and values, which `sees_shared`; made once."""
        key = (num_heads, sees_shared)
        if key not in self._layouts:
            self._layouts[key] = _layout(self, num_heads, device, sees_shared)
        return self._layouts[key]


@dataclass(frozen=True, slots=True)
class Layout:
    """How n heads of packed tokens, seen as [T * n, size], become rows [B * n, length, size]."""

    num_shared: int
    num_heads: int
    length: int  # of the longest row, with the shared tokens where it sees them
    sees_shared: bool
    sources: Tensor  # [B * n * length]: any token where a row is padded
    places: Tensor  # [(T - P) * n]: where the tokens of rows have gone


def _layout(packing: Packing, num_heads: int, device: torch.device, sees_shared: bool) -> Layout:
    before = packing.num_shared if sees_shared else 0
    length = before + max(packing.row_lengths)
    tokens = torch.zeros(packing.num_rows, length, dtype=torch.long)
    tokens[:, :before] = torch.arange(before)
    rows, columns = _coordinates(packing.row_lengths)
    tokens[rows, before + columns] = packing.num_shared + torch.arange(len(rows))
    heads = torch.arange(num_heads)
    sources = tokens[:, None] * num_heads + heads[:, None]  # [B, n, length]
    places = (rows[:, None] * num_heads + heads) * length + before + columns[:, None]
    return Layout(
        packing.num_shared,
        num_heads,
        length,
        sees_shared,
        sources.flatten().to(device),
        places.flatten().to(device),
    )


def _coordinates(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[sum of lengths]: row and column of each token of the rows."""
    counts = torch.tensor(lengths)
    rows = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    starts = torch.tensor([0, *accumulate(lengths)])
    return rows, torch.arange(len(rows)) - starts[rows]


def spread(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """[T, n, size] -> shared tokens [n, P, size] and rows [B * n, length, size]."""
    return _Spread.apply(x, layout)  # type: ignore[no-any-return, no-untyped-call]


def gather(shared: Tensor, rows: Tensor, layout: Layout) -> Tensor:
    """The way back, of queries: [n, P, size] and [B * n, length, size] -> [T, n, size]."""
    return _Gather.apply(shared, rows, layout)  # type: ignore[no-any-return, no-untyped-call]


# Autograd's gradient of an index is a sum over its sources, one after the other. Here each token is
# read back from its one place.
class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        ctx.layout, ctx.shape = layout, x.shape
        rows = x.reshape(-1, x.shape[-1]).index_select(0, layout.sources)
        shared = x[: layout.num_shared].transpose(0, 1).contiguous()
        return shared, rows.view(-1, layout.length, x.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        shared, rows = gradients
        layout, num_shared = ctx.layout, ctx.layout.num_shared
        dx = rows.new_empty(ctx.shape)
        own = dx[num_shared:].view(-1, ctx.shape[-1])
        torch.index_select(rows.reshape(-1, ctx.shape[-1]), 0, layout.places, out=own)
        if layout.sees_shared:
            by_row = rows.unflatten(0, (-1, layout.num_heads))
            shared = shared + by_row[:, :, :num_shared].sum(0)
        dx[:num_shared] = shared.transpose(0, 1)
        return dx, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shared: Tensor, rows: Tensor, layout: Layout) -> Tensor:
        ctx.layout, ctx.shape = layout, rows.shape
        num_shared, num_heads, size = layout.num_shared, layout.num_heads, rows.shape[-1]
        num_own = len(layout.places) // num_heads
        x = rows.new_empty(num_shared + num_own, num_heads, size)
        x[:num_shared] = shared.transpose(0, 1)
        own = x[num_shared:].view(-1, size)
        torch.index_select(rows.reshape(-1, size), 0, layout.places, out=own)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (dx,) = gradients
        num_shared, size = ctx.layout.num_shared, ctx.shape[-1]
        # What is padded has no gradient.
        rows = dx.new_zeros(ctx.shape)
        rows.view(-1, size).index_copy_(0, ctx.layout.places, dx[num_shared:].reshape(-1, size))
        return dx[:num_shared].transpose(0, 1), rows, None
