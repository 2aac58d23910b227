"""Attention over the paged KV cache with torch's operations, on any device.

Sequences that decode share two batched products. Prefill runs in blocks of positions
[64 b, 64 b + 64): a position is always in the same row of the same block and sees the same padded
keys, so what it computes does not depend on where its prompt was cut, on the prefix cache, or on
other sequences; not even in the last bit. Sequences that are in the same block share a call.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from finlora.attention_interface import additive_mask
from finlora.engine.attention import Scores, SequenceSpan, pages_of_new_tokens
from finlora.engine.kv_cache import CONTEXT_PADDING, Pages

BLOCK = CONTEXT_PADDING  # positions in a prefill block; keys are padded to its end


@dataclass(frozen=True, slots=True)
class Context:
    """Which rows of a layer's pool, seen as [pages * 2 * kv heads, head size], a group reads."""

    keys: Tensor  # [num_seqs * kv heads * length]
    values: Tensor
    num_rows: int  # num_seqs * kv heads
    length: int  # keys per sequence, padded

    @classmethod
    def of_pages(cls, pages: Pages, num_kv_heads: int, device: torch.device) -> "Context":
        """Of the page tables [num_seqs, length]; padding points to the zero page."""
        heads = np.arange(num_kv_heads)[None, :, None]
        keys = (pages[:, None, :] * (2 * num_kv_heads) + heads).reshape(-1)
        index = torch.from_numpy(keys).to(device)
        num_rows = len(pages) * num_kv_heads
        return cls(index, index + num_kv_heads, num_rows, pages.shape[1])

    def read(self, pool: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [num_rows, length, head size]."""
        rows = pool.view(-1, pool.shape[-1])
        shape = (self.num_rows, self.length, pool.shape[-1])
        return (
            rows.index_select(0, self.keys).view(shape),
            rows.index_select(0, self.values).view(shape),
        )


Biases = dict[tuple[int | None, torch.dtype], Tensor]


@dataclass(slots=True)
class DecodeGroup:
    """Sequences with one new token each, the first rows of the batch."""

    positions: Tensor  # [num_seqs], position of the new token
    context: Context
    _biases: Biases = field(default_factory=dict)

    @property
    def num_seqs(self) -> int:
        """Rows of the batch that belong to the group."""
        return self.positions.shape[0]

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [num_seqs * kv heads, 1, length]; made once per step and window."""
        key = (window, dtype)
        if key not in self._biases:
            keys = torch.arange(self.context.length, device=self.positions.device)
            bias = additive_mask(self.positions[:, None], keys, window, dtype)
            num_kv_heads = self.context.num_rows // self.num_seqs
            self._biases[key] = bias.repeat_interleave(num_kv_heads, 0)[:, None, :]
        return self._biases[key]


@dataclass(frozen=True, slots=True)
class HeadRows:
    """The rows of a block, head by head, of tensors seen as [tokens * heads, head size]."""

    queries: Tensor  # [num_seqs * heads * BLOCK], row of the batch's queries
    rows: Tensor  # [num_new * heads], rows of the batch's output
    places: Tensor  # [num_new * heads], where each of them is in what the block computes


@dataclass(slots=True)
class BlockGroup:
    """Sequences with new tokens in the positions [BLOCK * index, BLOCK * index + BLOCK)."""

    queries: Tensor  # [num_seqs * BLOCK], row of the batch for each position; any where none is new
    rows: Tensor  # [num_new], rows of the batch that are new here
    places: Tensor  # [num_new], where among `queries` each of them is
    context: Context
    _biases: Biases = field(default_factory=dict)
    _heads: HeadRows | None = None

    def bias(self, window: int | None, dtype: torch.dtype, num_groups: int) -> Tensor:
        """Additive mask [1, num_groups * BLOCK, length]; made once per step and window."""
        key = (window, dtype)
        if key not in self._biases:
            keys = torch.arange(self.context.length, device=self.rows.device)
            bias = additive_mask(keys[-BLOCK:, None], keys, window, dtype)
            self._biases[key] = bias.repeat(num_groups, 1)[None]
        return self._biases[key]

    def heads(self, num_heads: int) -> HeadRows:
        """The block's rows in the order of its products; made once per step."""
        if self._heads is None:
            heads = torch.arange(num_heads, device=self.rows.device)
            by_seq = self.queries.view(-1, 1, BLOCK) * num_heads + heads[:, None]
            seqs, positions = self.places // BLOCK, self.places % BLOCK
            places = (seqs[:, None] * num_heads + heads) * BLOCK + positions[:, None]
            rows = self.rows[:, None] * num_heads + heads
            self._heads = HeadRows(by_seq.flatten(), rows.flatten(), places.flatten())
        return self._heads


@dataclass(slots=True)
class GroupedBatch:
    """A step's sequences in groups that share their products."""

    pools: list[Tensor]  # per layer [pages, 2, kv heads, head size]
    new_pages: Tensor  # [T], page of each new token
    decode: DecodeGroup | None
    blocks: list[BlockGroup]

    def attend(self, query: Tensor, pool: Tensor, scores: Scores) -> Tensor:
        """[T, heads, head size] -> the same."""
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        if self.decode is not None:
            own = slice(0, self.decode.num_seqs)
            output[own] = _decode(query[own], pool, self.decode, scores)
        for block in self.blocks:
            _prefill(query, output, pool, block, scores)
        return output


def build_batch(pools: list[Tensor], table: Pages, spans: list[SequenceSpan]) -> GroupedBatch:
    """Describe a packed batch; spans that decode must come first, pages be already assigned."""
    device, num_kv_heads = pools[0].device, pools[0].shape[2]
    num_decodes = sum(span.decodes for span in spans)
    decode = None
    if num_decodes:
        decode = _decode_group(table, spans[:num_decodes], num_kv_heads, device)
    return GroupedBatch(
        pools=pools,
        new_pages=pages_of_new_tokens(table, spans).to(device),
        decode=decode,
        blocks=[
            _block_group(table, index, pieces, num_kv_heads, device)
            for index, pieces in _pieces(spans[num_decodes:], num_decodes).items()
        ],
    )


def _decode_group(
    table: Pages, spans: list[SequenceSpan], num_kv_heads: int, device: torch.device
) -> DecodeGroup:
    longest = max(span.start for span in spans) + 1
    padded = -(-longest // CONTEXT_PADDING) * CONTEXT_PADDING
    pages = table[[span.row for span in spans], :padded]
    positions = np.array([span.start for span in spans], np.int64)
    return DecodeGroup(
        torch.from_numpy(positions).to(device), Context.of_pages(pages, num_kv_heads, device)
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of a span that lies in one block."""

    table_row: int
    batch_row: int  # of its first token
    offset: int  # of its first token in the block
    num_tokens: int


def _pieces(spans: list[SequenceSpan], first_row: int) -> dict[int, list[_Piece]]:
    """The spans cut at the borders of blocks, by block."""
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
    return pieces


def _block_group(
    table: Pages, index: int, pieces: list[_Piece], num_kv_heads: int, device: torch.device
) -> BlockGroup:
    pages = table[[piece.table_row for piece in pieces], : BLOCK * (index + 1)]
    rows = np.concatenate([np.arange(p.batch_row, p.batch_row + p.num_tokens) for p in pieces])
    places = np.concatenate(
        [np.arange(p.offset, p.offset + p.num_tokens) + BLOCK * i for i, p in enumerate(pieces)]
    )
    queries = np.full(len(pieces) * BLOCK, rows[0])
    queries[places] = rows
    return BlockGroup(
        queries=torch.from_numpy(queries).to(device),
        rows=torch.from_numpy(rows).to(device),
        places=torch.from_numpy(places).to(device),
        context=Context.of_pages(pages, num_kv_heads, device),
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scores: Scores) -> Tensor:
    """[n, queries, size] by [n, keys, size]; bias broadcasts to [n, queries, keys].

    Two batched products: for short sequences two to ten times faster on a CPU than the fused
    kernel. Scores are rounded to the compute type once, as in transformers' eager attention.
    """
    if scores.softcap is None:
        weighed = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scores.scaling)
    else:
        products = torch.bmm(query, key.transpose(1, 2)).float() * scores.scaling
        capped = scores.softcap * torch.tanh(products / scores.softcap)
        weighed = (capped + bias).to(query.dtype)
    return torch.bmm(weighed.softmax(-1), value)


def _decode(query: Tensor, pool: Tensor, group: DecodeGroup, scores: Scores) -> Tensor:
    num_seqs, num_heads, size = query.shape
    key, value = group.context.read(pool)
    # The heads that share a key head become its queries: no key is repeated.
    grouped = query.reshape(key.shape[0], -1, size)
    bias = group.bias(scores.window, query.dtype)
    attended = _attend(grouped, key, value, bias, scores)
    return attended.view(num_seqs, num_heads, size)


def _prefill(
    query: Tensor, output: Tensor, pool: Tensor, group: BlockGroup, scores: Scores
) -> None:
    """Query and output [T, heads, size]; the block's new rows of the output are written."""
    num_heads, size = query.shape[1:]
    key, value = group.context.read(pool)
    heads = group.heads(num_heads)
    # One copy brings the queries into the order of the products, one brings the results back.
    grouped = query.reshape(-1, size).index_select(0, heads.queries).view(key.shape[0], -1, size)
    bias = group.bias(scores.window, query.dtype, grouped.shape[1] // BLOCK)
    attended = _attend(grouped, key, value, bias, scores).view(-1, size)
    output.view(-1, size).index_copy_(0, heads.rows, attended.index_select(0, heads.places))
