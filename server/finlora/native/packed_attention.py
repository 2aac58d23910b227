"""Attention of rows that begin with the same tokens, and its gradients.

See packed_attention.c and packed_attention_backward.c.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from finlora.native.library import DTYPES, LANES, address, load

MAX_HEAD_SIZE = 256
MAX_HEADS_OF_A_KEY = 126
# What two threads share evenly, and rows still share the copies of their keys. Every span has
# gradients of its own for the shared tokens, so there are never many.
MIN_SPAN = 48  # tokens
MAX_SPANS = 32  # about


class Saved(NamedTuple):
    """What the backward pass needs of the forward one."""

    out: Tensor  # [T, heads, size]
    maxima: Tensor  # [T, heads] in float32: of scores
    weights: Tensor  # [T, heads] in float32: sums of e^(score - maximum)


@dataclass(frozen=True, slots=True)
class Plan:
    """How rows are cut into spans, whatever the number of threads is."""

    row_ends: Tensor  # [1 + B]: in the packed row, the shared tokens' end first
    spans: Tensor  # [spans, 4]: begin, end, first token with gradients, place in the workspace
    num_covered: int  # tokens in the workspace


@dataclass(frozen=True, slots=True)
class Rows:
    """P shared tokens, then rows of so many tokens each, and who of them sees whom."""

    num_shared: int
    lengths: tuple[int, ...]
    window: int | None
    scaling: float


def fits(num_heads: int, num_kv_heads: int, head_size: int, dtype: torch.dtype) -> bool:
    """Whether the kernel takes such heads."""
    return (
        dtype in DTYPES
        and head_size % LANES == 0
        and head_size <= MAX_HEAD_SIZE
        and num_heads <= MAX_HEADS_OF_A_KEY * num_kv_heads
    )


def attend(query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Saved:
    """[T, heads, size] and [T, kv heads, size], contiguous and of one type, computed in float32.

    Raises KernelsUnusableError.
    """
    saved = Saved(
        torch.empty_like(query),
        torch.empty(query.shape[:2]),
        torch.empty(query.shape[:2]),
    )
    plan = make_plan(rows.num_shared, rows.lengths)
    load().finlora_packed_attention(
        *_common(query, key, value, plan, rows), *map(address, saved), *_how(query)
    )
    return saved


def gradients(
    dout: Tensor, saved: Saved, query: Tensor, key: Tensor, value: Tensor, rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, key and value, by that of `out`; the same bits for any number of threads.

    Raises KernelsUnusableError.
    """
    _check(dout, query)
    results = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    plan = make_plan(rows.num_shared, rows.lengths)
    workspace = torch.empty(plan.num_covered * 2 * key[0].numel())
    load().finlora_packed_attention_backward(
        *_common(query, key, value, plan, rows),
        *map(address, (*saved, dout, *results, workspace)),
        *_how(query),
    )
    return results


def _common(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, rows: Rows
) -> tuple[object, ...]:
    _check(query, key, value)
    assert key.shape == value.shape
    assert len(query) == len(key) == rows.num_shared + sum(rows.lengths)
    return (
        *map(address, (query, key, value)),
        address(plan.row_ends),
        ctypes.c_int64(len(plan.row_ends)),
        address(plan.spans),
        ctypes.c_int64(len(plan.spans)),
        ctypes.c_int64(query.shape[1]),
        ctypes.c_int64(key.shape[1]),
        ctypes.c_int64(query.shape[2]),
        ctypes.c_int64(rows.window or 0),
        ctypes.c_float(rows.scaling),
    )


def _check(*tensors: Tensor) -> None:
    assert len({(t.dtype, t.shape[2]) for t in tensors}) == 1
    assert all(t.is_contiguous() for t in tensors)


def _how(query: Tensor) -> tuple[ctypes.c_int, ctypes.c_int]:
    return ctypes.c_int(query.dtype is torch.bfloat16), ctypes.c_int(torch.get_num_threads())


# A step asks for the same plan in every layer.
@lru_cache(maxsize=8)
def make_plan(num_shared: int, lengths: tuple[int, ...]) -> Plan:
    """Spans are some rows, or a part of a long one."""
    ends = list(accumulate(lengths, initial=num_shared))
    span = max(MIN_SPAN, -(-ends[-1] // MAX_SPANS))
    spans, place = [], 0
    for begin, end in pairwise(_cuts(ends, span)):
        row_begin = max(e for e in (0, *ends) if e <= begin)
        first = min(max(row_begin, num_shared), end)
        spans.append([begin, end, first, place])
        place += num_shared + end - first
    return Plan(torch.tensor(ends), torch.tensor(spans), place)


def _cuts(ends: Sequence[int], span: int) -> list[int]:
    cuts = [0]
    for begin, end in pairwise((0, *ends)):
        is_long = end - begin >= 2 * span
        if begin > cuts[-1] and (is_long or begin - cuts[-1] >= span):
            cuts.append(begin)
        if is_long:
            cuts.extend(range(begin + span, end - span + 1, span))
    return sorted({*cuts, ends[-1]})
