"""The page pool: nothing is lost, nothing is owned twice, the padding page stays zero."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finlora.engine.kv_cache import PADDING_PAGE, KVCache, KVLayout
from finlora.engine.prefix_cache import NO_PAGES
from finlora.errors import ConfigError

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, head_dim=4, dtype=torch.float32)


def make_cache(num_pages: int = 40, max_num_seqs: int = 4, max_model_len: int = 16) -> KVCache:
    return KVCache(
        LAYOUT,
        num_bytes=num_pages * LAYOUT.bytes_per_token,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        device=torch.device("cpu"),
    )


def test_bytes_per_token_counts_keys_and_values_of_every_layer() -> None:
    assert LAYOUT.bytes_per_token == 2 * 2 * 1 * 4 * 4


def test_pages_of_a_row_follow_each_other_in_the_table() -> None:
    cache = make_cache()
    row = cache.open()
    pages = [*cache.extend(row, 3), *cache.extend(row, 2)]
    assert cache.table[row, :5].tolist() == pages
    assert cache.table[row, 5] == PADDING_PAGE
    assert len(set(pages) | {PADDING_PAGE}) == 6


def test_the_pool_is_no_larger_than_all_sequences_can_fill() -> None:
    assert make_cache(num_pages=10_000).num_pages == 4 * 16


def test_a_pool_that_cannot_hold_one_sequence_is_refused_with_the_size_it_needs() -> None:
    with pytest.raises(ConfigError, match=str(16 * LAYOUT.bytes_per_token)):
        make_cache(num_pages=15)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40))
def test_pages_are_conserved(steps: list[tuple[int, int]]) -> None:
    cache = make_cache()
    rows: dict[int, int] = {}
    lengths: dict[int, int] = {}
    for sequence, num_tokens in steps:
        if num_tokens == 0 and sequence in rows:
            cache.close(rows.pop(sequence))
            lengths.pop(sequence)
        elif num_tokens <= cache.num_free_pages and lengths.get(sequence, 0) + num_tokens <= 16:
            if sequence not in rows:
                rows[sequence] = cache.open()
            cache.extend(rows[sequence], num_tokens)
            lengths[sequence] = lengths.get(sequence, 0) + num_tokens
        cache.check_integrity(NO_PAGES)
        assert cache.num_free_pages == cache.num_pages - sum(lengths.values())
