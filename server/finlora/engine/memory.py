"""KV pages of running sequences: their own, and those they share through the prefix cache."""

from collections.abc import Sequence

import numpy as np

from finlora.engine.kv_cache import KVCache
from finlora.engine.prefix_cache import NO_PAGES, Node, Owner, PrefixCache

# Walking the tree to evict costs more than a page is worth: free some more at a time.
MIN_EVICTED_PAGES = 256


class KVMemory:
    """Gives sequences rows and pages; takes pages from the prefix cache when none are free."""

    def __init__(self, kv_cache: KVCache, prefix_cache: PrefixCache | None) -> None:
        self.kv_cache = kv_cache
        self._prefix_cache = prefix_cache
        self._shared: dict[int, tuple[Owner, Node]] = {}  # row -> whose text, locked up to where

    @property
    def num_available_pages(self) -> int:
        """Pages that are free or can be freed at once."""
        evictable = self._prefix_cache.num_evictable_pages if self._prefix_cache else 0
        return self.kv_cache.num_free_pages + evictable

    @property
    def prefix_cache_bytes(self) -> int:
        """Bytes of the pages that the prefix cache owns."""
        num_pages = self._prefix_cache.num_pages if self._prefix_cache else 0
        return num_pages * self.kv_cache.layout.bytes_per_token

    @property
    def usage(self) -> float:
        """Share of the pages that sequences need now, 0 to 1."""
        return 1 - self.num_available_pages / self.kv_cache.num_pages

    def num_cached(self, owner: Owner | None, tokens: Sequence[int]) -> int:
        """How many leading tokens `open` would find; at least one is left to compute."""
        if self._prefix_cache is None or owner is None:
            return 0
        return len(self._prefix_cache.match(owner, tokens[:-1]))

    def open(self, owner: Owner | None, tokens: Sequence[int]) -> tuple[int, int]:
        """A row for a new sequence, and how many of its leading tokens are there already."""
        row = self.kv_cache.open()
        if self._prefix_cache is None or owner is None:
            return row, 0
        node, pages = self._prefix_cache.lock(owner, tokens[:-1])
        self.kv_cache.share(row, pages, len(pages))
        self._shared[row] = (owner, node)
        return row, len(pages)

    def extend(self, row: int, num_tokens: int) -> None:
        """Pages for more tokens; the caller has checked `num_available_pages`."""
        missing = num_tokens - self.kv_cache.num_free_pages
        if missing > 0 and self._prefix_cache is not None:
            self.kv_cache.release(self._prefix_cache.evict(max(missing, MIN_EVICTED_PAGES)))
        self.kv_cache.extend(row, num_tokens)

    def publish(self, row: int, tokens: Sequence[int]) -> None:
        """Let others use the row's leading tokens, all of them computed."""
        if self._prefix_cache is None or row not in self._shared:
            return
        owner, node = self._shared[row]
        pages = self.kv_cache.table[row, : len(tokens)]
        published = self._prefix_cache.publish(owner, tokens, pages)
        self._prefix_cache.unlock(node)
        self._shared[row] = (owner, published.node)
        self.kv_cache.share(row, published.known, len(tokens))

    def close(self, row: int) -> None:
        """Give the row and its own pages back; what was published stays known."""
        if self._prefix_cache is not None and row in self._shared:
            self._prefix_cache.unlock(self._shared.pop(row)[1])
        self.kv_cache.close(row)

    def check_integrity(self, *, idle: bool = False) -> None:
        """Raise RuntimeError unless every page has one owner and, with `idle`, no row is open."""
        owned = NO_PAGES
        if self._prefix_cache is not None:
            self._prefix_cache.check_integrity(idle=idle)
            owned = self._prefix_cache.owned_pages()
        self.kv_cache.check_integrity(np.asarray(owned))
        if idle and (self.usage or self._shared):
            raise RuntimeError("KV memory: pages are left in use")
