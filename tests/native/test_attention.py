"""The compiled attention against the formula in float64."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finlora.native import attention
from tests.native.kernels import needs_kernels, threads

pytestmark = needs_kernels

FLOAT, HALF = torch.float32, torch.bfloat16


class Cache(NamedTuple):
    """A pool whose pages lie in random order."""

    pool: Tensor  # [pages, 2, kv heads, size]
    table: Tensor  # [sequences, positions]


Span = tuple[int, int]  # first position, number of new tokens


def make_cache(
    num_seqs: int, num_positions: int, num_kv_heads: int, size: int, dtype: torch.dtype = FLOAT
) -> Cache:
    generator = torch.Generator().manual_seed(0)
    num_pages = num_seqs * num_positions
    pool = torch.randn(num_pages, 2, num_kv_heads, size, generator=generator).to(dtype)
    table = torch.randperm(num_pages, generator=generator).view(num_seqs, num_positions)
    return Cache(pool, table)


def make_query(spans: Sequence[Span], num_heads: int, size: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    num_tokens = sum(num_new for _, num_new in spans)
    return torch.randn(num_tokens, num_heads, size, generator=generator).to(dtype)


def attend(
    query: Tensor, cache: Cache, spans: Sequence[Span], *, window: int | None = None
) -> Tensor:
    """Sequence i of the cache has the new tokens of span i."""
    described, row = [], 0
    for index, (start, num_new) in enumerate(spans):
        described.append([index, start, num_new, row])
        row += num_new
    return attention.attend(
        query, cache.pool, cache.table, torch.tensor(described), window=window, scaling=0.3
    )


def expected(
    query: Tensor, cache: Cache, spans: Sequence[Span], window: int | None = None
) -> Tensor:
    rows, row = [], 0
    for index, (start, num_new) in enumerate(spans):
        for position in range(start, start + num_new):
            begin = 0 if window is None else max(position - window + 1, 0)
            pages = cache.table[index, begin : position + 1]
            keys, values = cache.pool[pages].double().unbind(1)  # [n, kv heads, size]
            grouped = query[row].double().view(keys.shape[1], -1, query.shape[-1])
            scores = torch.einsum("kgd,nkd->kgn", grouped, keys) * 0.3
            rows.append(torch.einsum("kgn,nkd->kgd", scores.softmax(-1), values).flatten(0, 1))
            row += 1
    return torch.stack(rows)


@settings(max_examples=80, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 40)), min_size=1, max_size=5),
    heads=st.sampled_from([(1, 1), (4, 2), (9, 3), (6, 6), (10, 2), (64, 1)]),
    size=st.sampled_from([8, 16, 24, 64, 256]),
    window=st.none() | st.integers(1, 200),
    num_threads=st.integers(1, 2),
)
def test_any_batch(
    spans: list[Span], heads: tuple[int, int], size: int, window: int | None, num_threads: int
) -> None:
    num_heads, num_kv_heads = heads
    cache = make_cache(len(spans), 192, num_kv_heads, size)
    query = make_query(spans, num_heads, size, FLOAT)
    with threads(num_threads):
        found = attend(query, cache, spans, window=window)
    torch.testing.assert_close(
        found.double(), expected(query, cache, spans, window), atol=2e-5, rtol=1e-5
    )


def test_half_precision_rounds_the_result_alone() -> None:
    spans = [(0, 70), (100, 1)]
    cache, query = make_cache(2, 192, 3, 64, HALF), make_query(spans, 9, 64, HALF)
    found = attend(query, cache, spans)
    assert found.dtype is HALF
    wanted = expected(query, cache, spans)
    # Half a unit in the last of 8 bits, and what float32 adds.
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("window", [None, 50])
def test_the_same_bits_whatever_else_is_in_the_batch(
    dtype: torch.dtype, window: int | None
) -> None:
    spans = [(0, 100), (64, 37), (3, 1), (130, 1), (63, 1)]
    cache, query = make_cache(5, 192, 2, 32, dtype), make_query(spans, 6, 32, dtype)
    together = attend(query, cache, spans, window=window)
    row = 0
    for index, (start, num_new) in enumerate(spans):
        own = Cache(cache.pool, cache.table[index:])
        for position in range(start, start + num_new):
            alone = attend(query[row : row + 1], own, [(position, 1)], window=window)
            assert torch.equal(alone[0], together[row])
            row += 1


def test_scores_of_any_size() -> None:
    spans = [(0, 80)]
    cache, query = make_cache(1, 80, 1, 16), make_query(spans, 2, 16, FLOAT) * 1000
    found = attend(query, cache, spans).double()
    torch.testing.assert_close(found, expected(query, cache, spans), atol=1e-3, rtol=1e-3)


def test_pages_that_nobody_sees_are_not_read() -> None:
    cache, query = make_cache(2, 128, 1, 16), make_query([(70, 1), (20, 3)], 2, 16, FLOAT)
    spans = [(70, 1), (20, 3)]
    before = attend(query, cache, spans)
    cache.pool[cache.table[0, 71:]] = torch.nan
    cache.pool[cache.table[1, 23:]] = torch.nan
    assert torch.equal(attend(query, cache, spans), before)


def test_what_is_no_number_stays_in_its_own_sequence() -> None:
    spans = [(70, 1), (20, 3)]
    cache, query = make_cache(2, 128, 1, 16), make_query(spans, 2, 16, FLOAT)
    before = attend(query, cache, spans)
    cache.pool[cache.table[0, 5]] = torch.nan
    after = attend(query, cache, spans)
    assert after[0].isnan().all()
    assert torch.equal(after[1:], before[1:])


def test_queries_may_lie_apart() -> None:
    spans = [(0, 5), (9, 2)]
    cache = make_cache(2, 64, 2, 16)
    wide = make_query(spans, 8, 16, FLOAT)  # as joined outputs: a part of each row is the query
    query = wide[:, 2:6]
    assert torch.equal(attend(query, cache, spans), attend(query.contiguous(), cache, spans))


@pytest.mark.parametrize(
    ("heads", "size", "dtype", "fits"),
    [
        ((9, 3), 64, FLOAT, True),
        ((64, 1), 256, HALF, True),
        ((65, 1), 64, FLOAT, False),
        ((4, 2), 12, FLOAT, False),
        ((4, 2), 264, FLOAT, False),
        ((4, 2), 64, torch.float16, False),
    ],
)
def test_what_fits(heads: tuple[int, int], size: int, dtype: torch.dtype, fits: bool) -> None:
    assert attention.fits(*heads, size, dtype) is fits
