"""Attention over the paged KV cache for a packed batch, plugged into transformers' models.

The batch is one row of tokens [1, T]: first the sequences that add one token (decode), then those
that add several (prefill chunks). Only attention knows where one sequence ends and the next begins.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from finlora.engine.kv_cache import CONTEXT_PADDING

IMPLEMENTATION = "finlora_paged"


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
            last = self.positions[:, None]
            visible = keys <= last
            if window is not None:
                visible &= keys > last - window
            bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            bias.masked_fill_(~visible, float("-inf"))
            self._biases[key] = bias[:, None, None, :]
        return self._biases[key]


@dataclass(slots=True)
class PrefillChunk:
    """Several new tokens of one sequence: rows [start, stop) of the batch."""

    start: int
    stop: int
    first_position: int
    pages: Tensor | None  # [context length], None when the chunk is the whole context
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """Boolean mask [num_new, context]; None when plain causal attention is meant."""
        length = self.first_position + self.stop - self.start
        if window is not None and window >= length:
            window = None
        if window not in self._masks:
            self._masks[window] = self._build_mask(window, length, device)
        return self._masks[window]

    def _build_mask(self, window: int | None, length: int, device: torch.device) -> Tensor | None:
        if self.pages is None and window is None:
            return None
        queries = torch.arange(self.first_position, length, device=device)[:, None]
        keys = torch.arange(length, device=device)[None, :]
        visible = keys <= queries
        if window is not None:
            visible &= keys > queries - window
        return visible


@dataclass(slots=True)
class AttentionBatch:
    """Where the packed tokens of one step read and write the cache."""

    pools: list[Tensor]  # per layer [pages, 2, kv heads, head size]
    new_pages: Tensor  # [T], page of each new token
    decode: DecodeGroup | None
    prefills: list[PrefillChunk]


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """One sequence's new tokens: positions [start, start + num_tokens), row of the page table."""

    row: int
    start: int
    num_tokens: int


def build_batch(
    pools: list[Tensor], table: npt.NDArray[np.int64], spans: list[SequenceSpan]
) -> AttentionBatch:
    """Describe a packed batch; spans of one token must come first, pages be already assigned."""
    device = pools[0].device
    num_decodes = sum(span.num_tokens == 1 for span in spans)
    new_pages = np.concatenate(
        [table[span.row, span.start : span.start + span.num_tokens] for span in spans]
    )
    prefills = []
    offset = num_decodes
    for span in spans[num_decodes:]:
        stop = offset + span.num_tokens
        pages = None
        if span.start:
            pages = torch.from_numpy(table[span.row, : span.start + span.num_tokens]).to(device)
        prefills.append(PrefillChunk(offset, stop, span.start, pages))
        offset = stop
    return AttentionBatch(
        pools=pools,
        new_pages=torch.from_numpy(new_pages).to(device),
        decode=_decode_group(table, spans[:num_decodes], device),
        prefills=prefills,
    )


def _decode_group(
    table: npt.NDArray[np.int64], spans: list[SequenceSpan], device: torch.device
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
    # [T, kv heads, size]
    new = torch.stack((key[0].transpose(0, 1), value[0].transpose(0, 1)), dim=1)
    pool.index_copy_(0, attention_batch.new_pages, new)
    query = query[0].transpose(0, 1)  # [T, heads, size]
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    decode = attention_batch.decode
    if decode is not None:
        rows = slice(0, decode.num_seqs)
        output[rows] = _decode(query[rows], pool, decode, scaling, sliding_window, softcap)
    for chunk in attention_batch.prefills:
        rows = slice(chunk.start, chunk.stop)
        own = new[rows] if chunk.pages is None else pool.index_select(0, chunk.pages)
        mask = chunk.mask(sliding_window, query.device)
        output[rows] = _prefill(query[rows], own, mask, scaling, softcap)
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
    num_kv_heads = pool.shape[2]
    context = pool.index_select(0, group.pages)
    context = context.view(num_seqs, group.padded_length, 2, num_kv_heads, size)
    key, value = context[:, :, 0].transpose(1, 2), context[:, :, 1].transpose(1, 2)
    # The heads that share a key head become its queries: no key is repeated.
    grouped = query.reshape(num_seqs, num_kv_heads, num_heads // num_kv_heads, size)
    bias = group.bias(window, query.dtype)
    attended = _attend(grouped, key, value, bias, scaling, softcap)
    return attended.reshape(num_seqs, num_heads, size)


def _prefill(
    query: Tensor,
    context: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    num_groups = query.shape[1] // context.shape[2]
    key = context[:, 0].transpose(0, 1).repeat_interleave(num_groups, 0)[None]
    value = context[:, 1].transpose(0, 1).repeat_interleave(num_groups, 0)[None]
    queries = query.transpose(0, 1)[None]  # [1, heads, new, size]
    if mask is None and softcap is None:
        attended = F.scaled_dot_product_attention(
            queries, key, value, is_causal=True, scale=scaling
        )
    else:
        attended = _attend(queries, key, value, _as_bias(mask, queries), scaling, softcap)
    return attended[0].transpose(0, 1)


def _as_bias(mask: Tensor | None, query: Tensor) -> Tensor:
    if mask is None:
        length = query.shape[-2]
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril_()
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    return bias.masked_fill_(~mask, float("-inf"))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
    # No fused kernel knows soft-capped scores (Gemma 2).
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale
    scores = softcap * torch.tanh(scores / softcap) + bias
    return torch.matmul(scores.softmax(-1).to(query.dtype), value)


def _no_mask(*_: object, **__: object) -> None:
    """Our attention needs no mask tensor: the batch says who sees whom."""


def register() -> None:
    """Make the implementation known to transformers (idempotent)."""
    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
