"""Attention over the paged KV cache for a packed batch, plugged into transformers' models.

The batch is one row of tokens [1, T]: first the sequences that decode, one token each, then those
whose prompt is run (prefill). Prefill runs in blocks of positions [64 b, 64 b + 64): a position is
always in the same row of the same block and sees the same padded keys, so what it computes does not
depend on where its prompt was cut, on the prefix cache, or on other sequences; not even in the last
bit. Sequences that are in the same block share a call.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from finlora.engine.kv_cache import CONTEXT_PADDING, Pages

IMPLEMENTATION = "finlora_paged"
BLOCK = CONTEXT_PADDING  # positions in a prefill block; keys are padded to its end


@dataclass(slots=True)
class DecodeGroup:
    """Sequences with one new token each, the first rows of the batch."""

    pages: Tensor  # [num_seqs * padded_length], int64; padding points to the zero page
    positions: Tensor  # [num_seqs], position of the new token
    padded_length: int
    _biases: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    @property
    def num_seqs(self) -> int:
        """Rows of the batch that belong to the group."""
        return self.positions.shape[0]

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [num_seqs, 1, 1, padded_length]; made once per step and window."""
        key = (window, dtype)
        if key not in self._biases:
            keys = torch.arange(self.padded_length, device=self.positions.device)
            bias = _bias(self.positions[:, None], keys, window, dtype)
            self._biases[key] = bias[:, None, None, :]
        return self._biases[key]


@dataclass(slots=True)
class BlockGroup:
    """Sequences with new tokens in the positions [BLOCK * index, BLOCK * index + BLOCK)."""

    index: int
    pages: Tensor  # [num_seqs * BLOCK * (index + 1)]
    queries: Tensor  # [num_seqs * BLOCK], row of the batch for each position; any where none is new
    rows: Tensor  # [num_new], rows of the batch that are new here
    places: Tensor  # [num_new], where among `queries` each of them is
    _biases: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    @property
    def context_length(self) -> int:
        """Keys that a block of queries is shown, masked ones included."""
        return BLOCK * (self.index + 1)

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [BLOCK, context_length]; made once per step and window."""
        key = (window, dtype)
        if key not in self._biases:
            keys = torch.arange(self.context_length, device=self.pages.device)
            self._biases[key] = _bias(keys[-BLOCK:, None], keys, window, dtype)
        return self._biases[key]


@dataclass(slots=True)
class AttentionBatch:
    """Where the packed tokens of one step read and write the cache."""

    pools: list[Tensor]  # per layer [pages, 2, kv heads, head size]
    new_pages: Tensor  # [T], page of each new token
    decode: DecodeGroup | None
    blocks: list[BlockGroup]


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """One sequence's new tokens: positions [start, start + num_tokens), row of the page table."""

    row: int
    start: int
    num_tokens: int
    decodes: bool  # one token that follows the prompt


def build_batch(pools: list[Tensor], table: Pages, spans: list[SequenceSpan]) -> AttentionBatch:
    """Describe a packed batch; spans that decode must come first, pages be already assigned."""
    device = pools[0].device
    num_decodes = sum(span.decodes for span in spans)
    new_pages = [table[span.row, span.start : span.start + span.num_tokens] for span in spans]
    return AttentionBatch(
        pools=pools,
        new_pages=torch.from_numpy(np.concatenate(new_pages)).to(device),
        decode=_decode_group(table, spans[:num_decodes], device),
        blocks=_block_groups(table, spans[num_decodes:], num_decodes, device),
    )


def _decode_group(
    table: Pages, spans: list[SequenceSpan], device: torch.device
) -> DecodeGroup | None:
    if not spans:
        return None
    longest = max(span.start for span in spans) + 1
    padded = -(-longest // CONTEXT_PADDING) * CONTEXT_PADDING
    pages = table[[span.row for span in spans], :padded].reshape(-1)
    positions = np.array([span.start for span in spans], np.int64)
    return DecodeGroup(
        torch.from_numpy(pages).to(device), torch.from_numpy(positions).to(device), padded
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of a span that lies in one block."""

    table_row: int
    batch_row: int  # of its first token
    offset: int  # of its first token in the block
    num_tokens: int


def _block_groups(
    table: Pages, spans: list[SequenceSpan], first_row: int, device: torch.device
) -> list[BlockGroup]:
    pieces: dict[int, list[_Piece]] = defaultdict(list)
    batch_row = first_row
    for span in spans:
        position, stop = span.start, span.start + span.num_tokens
        while position < stop:
            index, offset = divmod(position, BLOCK)
            num_tokens = min(BLOCK - offset, stop - position)
            pieces[index].append(_Piece(span.row, batch_row, offset, num_tokens))
            position += num_tokens
            batch_row += num_tokens
    return [_block_group(table, index, group, device) for index, group in pieces.items()]


def _block_group(
    table: Pages, index: int, pieces: list[_Piece], device: torch.device
) -> BlockGroup:
    pages = table[[piece.table_row for piece in pieces], : BLOCK * (index + 1)]
    rows = np.concatenate([np.arange(p.batch_row, p.batch_row + p.num_tokens) for p in pieces])
    places = np.concatenate(
        [np.arange(p.offset, p.offset + p.num_tokens) + BLOCK * i for i, p in enumerate(pieces)]
    )
    queries = np.full(len(pieces) * BLOCK, rows[0])
    queries[places] = rows
    return BlockGroup(
        index,
        pages=torch.from_numpy(pages.reshape(-1)).to(device),
        queries=torch.from_numpy(queries).to(device),
        rows=torch.from_numpy(rows).to(device),
        places=torch.from_numpy(places).to(device),
    )


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
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    decode = attention_batch.decode
    if decode is not None:
        own = query[: decode.num_seqs]
        output[: decode.num_seqs] = _decode(own, pool, decode, scaling, sliding_window, softcap)
    for block in attention_batch.blocks:
        attended = _prefill(query, pool, block, scaling, sliding_window, softcap)
        output.index_copy_(0, block.rows, attended)
    return output[None], None


def _decode(
    query: Tensor,
    pool: Tensor,
    group: DecodeGroup,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    num_seqs, num_heads, size = query.shape
    key, value = _context(pool, group.pages, num_seqs)
    # The heads that share a key head become its queries: no key is repeated.
    num_kv_heads = key.shape[1]
    grouped = query.reshape(num_seqs, num_kv_heads, num_heads // num_kv_heads, size)
    bias = group.bias(window, query.dtype)
    attended = _attend(grouped, key, value, bias, scaling, softcap)
    return attended.reshape(num_seqs, num_heads, size)


def _prefill(
    query: Tensor,
    pool: Tensor,
    group: BlockGroup,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    num_heads, size = query.shape[1:]
    num_seqs = group.queries.shape[0] // BLOCK
    key, value = _context(pool, group.pages, num_seqs)
    queries = query.index_select(0, group.queries).view(num_seqs, BLOCK, num_heads, size)
    bias = group.bias(window, query.dtype)
    attended = _attend(queries.transpose(1, 2), key, value, bias, scaling, softcap)
    attended = attended.transpose(1, 2).reshape(num_seqs * BLOCK, num_heads, size)
    return attended.index_select(0, group.places)


def _context(pool: Tensor, pages: Tensor, num_seqs: int) -> tuple[Tensor, Tensor]:
    """Keys and values [num_seqs, kv heads, context, size] of equally many pages for each."""
    context = pool.index_select(0, pages)
    context = context.view(num_seqs, pages.shape[0] // num_seqs, *pool.shape[1:])
    return context[:, :, 0].transpose(1, 2), context[:, :, 1].transpose(1, 2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """[seqs, heads, queries, size]; key and value may have fewer heads."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=scaling, enable_gqa=True
        )
    # No fused kernel knows soft-capped scores (Gemma 2).
    num_groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(num_groups, 1) for t in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale
    scores = softcap * torch.tanh(scores / softcap) + bias
    return torch.matmul(scores.softmax(-1).to(query.dtype), value)


def _bias(queries: Tensor, keys: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a key is no later than its query and inside the window, -inf elsewhere."""
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, float("-inf"))


def _no_mask(*_: object, **__: object) -> None:
    """Our attention needs no mask tensor: the batch says who sees whom."""


def register() -> None:
    """Make the implementation known to transformers (idempotent)."""
    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
