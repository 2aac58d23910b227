"""Both ways to attend over the cache, against the formula in float64 and each other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from finlora.engine import grouped_attention, native_attention
from finlora.engine.attention import AttentionBatch, Scores, SequenceSpan
from finlora.engine.kv_cache import Pages
from tests.native.kernels import needs_kernels

NUM_HEADS, NUM_KV_HEADS, SIZE = 6, 2, 16
# Decoding ones first; the others begin, go on within a block of positions, and cross its border.
SPANS = [
    SequenceSpan(row=3, start=70, num_tokens=1, decodes=True),
    SequenceSpan(row=0, start=5, num_tokens=1, decodes=True),
    SequenceSpan(row=2, start=0, num_tokens=9, decodes=False),
    SequenceSpan(row=4, start=12, num_tokens=40, decodes=False),
    SequenceSpan(row=1, start=60, num_tokens=80, decodes=False),
]
Build = Callable[[list[Tensor], Pages, list[SequenceSpan]], AttentionBatch]
BUILDERS = [
    pytest.param(grouped_attention.build_batch, id="grouped"),
    pytest.param(native_attention.build_batch, id="native", marks=needs_kernels),
]


def make_cache() -> tuple[Tensor, Pages]:
    """A pool, and the table of five sequences of up to 192 tokens; page 0 pads."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(1 + 5 * 192, 2, NUM_KV_HEADS, SIZE, generator=generator)
    pool[0] = 0
    pages = 1 + torch.randperm(5 * 192, generator=generator).view(5, 192)
    table = np.zeros((5, 192), np.int64)
    for span in SPANS:
        end = span.start + span.num_tokens
        table[span.row, :end] = pages[span.row, :end]
    return pool, table


def expected(query: Tensor, pool: Tensor, table: Pages, scores: Scores) -> Tensor:
    rows, row = [], 0
    for span in SPANS:
        for position in range(span.start, span.start + span.num_tokens):
            begin = 0 if scores.window is None else max(position - scores.window + 1, 0)
            keys, values = pool[table[span.row, begin : position + 1]].double().unbind(1)
            grouped = query[row].double().view(NUM_KV_HEADS, -1, SIZE)
            weights = torch.einsum("kgd,nkd->kgn", grouped, keys) * scores.scaling
            if scores.softcap is not None:
                weights = scores.softcap * torch.tanh(weights / scores.softcap)
            weighed = torch.einsum("kgn,nkd->kgd", weights.softmax(-1), values)
            rows.append(weighed.flatten(0, 1))
            row += 1
    return torch.stack(rows)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("window", [None, 30])
def test_a_mixed_step(build: Build, window: int | None) -> None:
    pool, table = make_cache()
    batch = build([pool], table, SPANS)
    query = torch.randn(len(batch.new_pages), NUM_HEADS, SIZE)
    scores = Scores(scaling=0.3, softcap=None, window=window)
    found = batch.attend(query, pool, scores).double()
    torch.testing.assert_close(found, expected(query, pool, table, scores), atol=1e-5, rtol=1e-5)


def test_scores_with_a_cap() -> None:
    pool, table = make_cache()
    batch = grouped_attention.build_batch([pool], table, SPANS)
    query = torch.randn(len(batch.new_pages), NUM_HEADS, SIZE)
    scores = Scores(scaling=0.3, softcap=2.0, window=None)
    found = batch.attend(query, pool, scores).double()
    torch.testing.assert_close(found, expected(query, pool, table, scores), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", BUILDERS)
def test_where_new_tokens_go(build: Build) -> None:
    pool, table = make_cache()
    batch = build([pool], table, SPANS)
    wanted = [table[s.row, s.start : s.start + s.num_tokens] for s in SPANS]
    assert batch.new_pages.tolist() == np.concatenate(wanted).tolist()
    assert batch.pools[0] is pool
