"""Attention of a training batch packed into one row of tokens (`Packing`), or of plain rows.

Packed rows go to our kernel where it can be used. Elsewhere every row gets its copy of the shared
keys, which is less than what is computed from them. It keeps no state between layers, so blocks may
be computed again in the backward pass.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from finlora.attention_interface import additive_mask, use_attention, visible
from finlora.native.packed_attention import Rows
from finlora.training import native_packed_attention
from finlora.training.packing import Packing, gather, spread

IMPLEMENTATION = "finlora_packed"
# Up to here two batched products beat the fused CPU kernel, whose backward pass alone took a fifth
# of a step of 80-token rows; what they keep grows with the square.
MAX_EAGER_TOKENS = 512


class _Heads(NamedTuple):
    """What rows attend with. The queries of g heads follow each other: they share a key head."""

    query: Tensor  # [n * g, queries, size]
    key: Tensor  # [n, keys, size]
    value: Tensor


@dataclass(frozen=True, slots=True)
class _Scores:
    """How a layer turns products of queries and keys into scores, and who sees whom."""

    scaling: float
    softcap: float | None
    window: int | None

    def probabilities(self, query: Tensor, key: Tensor, num_queries: int) -> Tensor:
        """[n, g * queries, size] by [n, keys, size] -> [n, g * queries, keys]; the last queries and
        keys are the same tokens."""
        positions = _positions(num_queries, key.shape[1], query.device)
        hidden = additive_mask(*positions, self.window, query.dtype)
        hidden = hidden.repeat(query.shape[1] // num_queries, 1)
        if self.softcap is None:
            scores = torch.baddbmm(hidden, query, key.transpose(1, 2), alpha=self.scaling)
        else:
            scores = torch.bmm(query, key.transpose(1, 2)) * (self.scaling / self.softcap)
            scores = self.softcap * torch.tanh(scores) + hidden
        # Rounded to the compute type once, as in transformers' eager attention.
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype)


def packed_attention(
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
    packing: Packing | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Query [1, heads, T, size], key and value [1, kv heads, T, size] -> [1, T, heads, size].

    Without `packing`: plain rows [B, heads, L, size]. The mask is None by our mask function;
    dropout is 0: the base itself never trains.
    """
    scores = _Scores(
        query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, sliding_window
    )
    if packing is not None:
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return _attend_packed(query, key, value, packing, scores)[None], None
    heads = _Heads(*(tensor.flatten(0, 1) for tensor in (query, key, value)))
    return _attend(heads, scores).view(query.shape).transpose(1, 2), None


def _attend_packed(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scores: _Scores
) -> Tensor:
    """[T, heads, size] and [T, kv heads, size] -> [T, heads, size]."""
    if scores.softcap is None and native_packed_attention.can_attend(query, key, value):
        rows = Rows(packing.num_shared, packing.row_lengths, scores.window, scores.scaling)
        return native_packed_attention.attend(query, key, value, rows)
    return _attend_spread(query, key, value, packing, scores)


def _attend_spread(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scores: _Scores
) -> Tensor:
    """The same by torch's operations on padded rows."""
    of_queries = packing.layout(query.shape[1], query.device, sees_shared=False)
    of_keys = packing.layout(key.shape[1], key.device, sees_shared=True)
    ways = (query, of_queries), (key, of_keys), (value, of_keys)
    shared, rows = (_Heads(*heads) for heads in zip(*(spread(*way) for way in ways), strict=True))
    head = _attend(shared, scores) if packing.num_shared else shared.query
    return gather(head, _attend(rows, scores), of_queries)


def _attend(heads: _Heads, scores: _Scores) -> Tensor:
    """[n * g, queries, size], as the query."""
    query, key, value = heads
    num_queries, num_keys = query.shape[1], key.shape[1]
    if num_keys > MAX_EAGER_TOKENS and scores.softcap is None:
        return _fused(heads, scores)
    grouped = query.reshape(len(key), -1, query.shape[-1])
    probabilities = scores.probabilities(grouped, key, num_queries)
    return torch.bmm(probabilities, value).view(query.shape)


def _fused(heads: _Heads, scores: _Scores) -> Tensor:
    query, key, value = heads
    seen = visible(*_positions(query.shape[1], key.shape[1], query.device), scores.window)
    attended = F.scaled_dot_product_attention(
        query.unflatten(0, (len(key), -1)),  # [n, g, queries, size]
        key[:, None],
        value[:, None],
        attn_mask=seen,
        scale=scores.scaling,
        enable_gqa=True,
    )
    return attended.flatten(0, 1)


def _positions(num_queries: int, num_keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of queries [queries, 1], the last ones, and of keys [keys]."""
    keys = torch.arange(num_keys, device=device)
    return keys[num_keys - num_queries :, None], keys


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let the model's layers attend here (idempotent)."""
    use_attention(model, IMPLEMENTATION, packed_attention)
