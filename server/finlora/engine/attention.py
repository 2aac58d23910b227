"""Attention over the paged KV cache for a packed batch, plugged into transformers' models.

The batch is one row of tokens [1, T]: first the sequences that decode, one token each, then those
whose prompt is run (prefill). How their queries meet the cache is the batch's own matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from finlora.engine.kv_cache import Pages

IMPLEMENTATION = "finlora_paged"


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """One sequence's new tokens: positions [start, start + num_tokens), row of the page table."""

    row: int
    start: int
    num_tokens: int
    decodes: bool  # one token that follows the prompt


def pages_of_new_tokens(table: Pages, spans: Sequence[SequenceSpan]) -> Tensor:
    """[T], in the order of the packed batch."""
    pages = [table[span.row, span.start : span.start + span.num_tokens] for span in spans]
    return torch.from_numpy(np.concatenate(pages))


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer turns products of queries and keys into scores, and who sees whom."""

    scaling: float
    softcap: float | None
    window: int | None  # positions that a query sees, its own included; None: all before


class AttentionBatch(Protocol):
    """Where the packed tokens of one step read and write the cache."""

    @property
    def pools(self) -> list[Tensor]:
        """Of each layer: [pages, 2, kv heads, head size]."""

    @property
    def new_pages(self) -> Tensor:
        """[T], page of each new token."""

    def attend(self, query: Tensor, pool: Tensor, scores: Scores) -> Tensor:
        """[T, heads, head size] -> the same; the pool holds the new tokens already."""


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    attention_batch: AttentionBatch,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of a packed batch; query [1, heads, T, size], key and value [1, kv heads, T, size].

    Returns [1, T, heads, size]. `attention_mask` is None by our mask function; dropout is 0 here.
    """
    pool = attention_batch.pools[module.layer_idx]  # type: ignore[index]
    new = torch.stack((key[0].transpose(0, 1), value[0].transpose(0, 1)), dim=1)
    pool.index_copy_(0, attention_batch.new_pages, new)  # [T, 2, kv heads, size]
    query = query[0].transpose(0, 1)  # [T, heads, size]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention_batch.attend(query, pool, Scores(scale, softcap, sliding_window))[None], None
