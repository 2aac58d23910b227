"""Keys and values of all sequences: one pool of token-sized pages, and who owns which page.

A page holds one token, so nothing is ever reserved that is not used and a prefix can be shared at
any length. Page 0 is never given out and stays zero: padding points to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from finlora.errors import ConfigError

PADDING_PAGE = 0
# Contexts are read in multiples of this many pages. Whole vector registers make the sums over a
# sequence's own keys independent of how far its batch mates reach.
CONTEXT_PADDING = 64
# Rows for branches of one step, beside those of sequences: 8 MB at a context of 4,096.
NUM_BRANCH_ROWS = 256

Pages = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape of one token's keys and values in every layer."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class KVCache:
    """Owns the pages; a sequence owns a row of the page table while it runs."""

    def __init__(
        self,
        layout: KVLayout,
        *,
        num_bytes: int,
        max_num_seqs: int,
        max_model_len: int,
        device: torch.device,
    ) -> None:
        self.layout = layout
        self.max_model_len = max_model_len
        wanted = min(num_bytes // layout.bytes_per_token, max_num_seqs * max_model_len)
        if wanted < max_model_len:
            need = max_model_len * layout.bytes_per_token
            raise ConfigError(
                f"kv_cache_bytes={num_bytes} cannot hold one sequence of max_model_len="
                f"{max_model_len}: give at least {need} bytes or a smaller max_model_len"
            )
        self.num_pages = wanted
        # Layer by layer [pages, 2 (key, value), kv heads, head size]: a token's key and value are
        # gathered in one read.
        shape = (wanted + 1, 2, layout.num_kv_heads, layout.head_dim)
        # A page is written before it is read, so memory is taken only as pages come into use.
        self.pools = [
            torch.empty(shape, dtype=layout.dtype, device=device) for _ in range(layout.num_layers)
        ]
        for pool in self.pools:
            pool[PADDING_PAGE] = 0
        # A row per sequence; unused entries point to the padding page.
        columns = -(-max_model_len // CONTEXT_PADDING) * CONTEXT_PADDING
        self.table: Pages = np.zeros((max_num_seqs + NUM_BRANCH_ROWS, columns), np.int64)
        self._first_branch_row = max_num_seqs
        self._branch_lengths: list[int] = []
        self._free_pages = np.arange(wanted, 0, -1, dtype=np.int64)
        self._num_free_pages = wanted
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._lengths = [0] * max_num_seqs
        self._num_shared = [0] * max_num_seqs  # leading pages of a row that others own

    @property
    def num_free_pages(self) -> int:
        """Pages that nobody owns."""
        return self._num_free_pages

    @property
    def num_bytes(self) -> int:
        """Size of the pool."""
        return (self.num_pages + 1) * self.layout.bytes_per_token

    def open(self) -> int:
        """Give a new sequence its row."""
        return self._free_rows.pop()

    def extend(self, row: int, num_tokens: int) -> Pages:
        """Append pages for `num_tokens` more tokens; the caller has checked `num_free_pages`."""
        assert num_tokens <= self._num_free_pages
        left = self._num_free_pages - num_tokens
        pages = self._free_pages[left : self._num_free_pages].copy()
        start = self._lengths[row]
        self.table[row, start : start + num_tokens] = pages
        self._num_free_pages = left
        self._lengths[row] = start + num_tokens
        return pages

    def share(self, row: int, pages: Pages, num_shared: int) -> None:
        """Let the row begin with `pages`; its first `num_shared` belong to somebody else now.

        Pages of the row's own that `pages` takes the place of are freed.
        """
        num_given = len(pages)
        self.release(self.table[row, self._num_shared[row] : num_given][: self._num_own(row)])
        self.table[row, :num_given] = pages
        self._lengths[row] = max(self._lengths[row], num_given)
        self._num_shared[row] = num_shared

    def branch(self, row: int, num_shared: int, columns: Sequence[int]) -> int:
        """A row that begins like `row` and goes on with the pages of its columns.

        It owns nothing and is there until `close_branches`.
        """
        branch = self._first_branch_row + len(self._branch_lengths)
        length = num_shared + len(columns)
        self.table[branch, :num_shared] = self.table[row, :num_shared]
        self.table[branch, num_shared:length] = self.table[row, columns]
        self._branch_lengths.append(length)
        return branch

    def close_branches(self) -> None:
        """Take the rows of all branches back."""
        for i, length in enumerate(self._branch_lengths):
            self.table[self._first_branch_row + i, :length] = PADDING_PAGE
        self._branch_lengths.clear()

    def release(self, pages: Pages) -> None:
        """Take pages back that their owner gives up."""
        freed = self._num_free_pages + len(pages)
        self._free_pages[self._num_free_pages : freed] = pages
        self._num_free_pages = freed

    def close(self, row: int) -> None:
        """Take the row and its own pages back."""
        length = self._lengths[row]
        self.release(self.table[row, self._num_shared[row] : length])
        self.table[row, :length] = PADDING_PAGE
        self._lengths[row] = self._num_shared[row] = 0
        self._free_rows.append(row)

    def check_integrity(self, shared: Pages) -> None:
        """Raise RuntimeError unless every page is owned once: by a row, by `shared`, or free."""
        own = [
            self.table[row, num_shared:length]
            for row, (num_shared, length) in enumerate(
                zip(self._num_shared, self._lengths, strict=True)
            )
        ]
        pages = np.concatenate([self._free_pages[: self._num_free_pages], shared, *own])
        if not np.array_equal(np.sort(pages), np.arange(1, self.num_pages + 1)):
            raise RuntimeError("KV cache: a page is lost or owned twice")
        if len(self._free_rows) + sum(length > 0 for length in self._lengths) > len(self._lengths):
            raise RuntimeError("KV cache: a row is free and owned")

    def _num_own(self, row: int) -> int:
        return self._lengths[row] - self._num_shared[row]
