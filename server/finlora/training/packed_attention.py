"""Attention of a training batch packed into one row of tokens: the tokens that all rows start with,
then what follows in each row.

Everything but attention sees [1, P + B * L] tokens and computes the shared ones once. Here every
row gets its copy of the shared keys, which is less than what is computed from them. It keeps no
state between layers, so blocks may be computed again in the backward pass.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from finlora.attention_interface import additive_mask, use_attention, visible

IMPLEMENTATION = "finlora_packed"
# Up to here two batched products beat the fused CPU kernel, whose backward pass alone took a fifth
# of a step of 80-token rows; what they keep grows with the square.
MAX_EAGER_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Packing:
    """P shared tokens, then B rows of L tokens each."""

    num_shared: int
    num_rows: int
    row_length: int

    def positions(self, device: torch.device) -> Tensor:
        """[1, P + B * L]: place of each token in its own row."""
        length = self.num_shared + self.row_length
        whole = torch.arange(length, device=device)
        rows = whole[self.num_shared :].repeat(self.num_rows)
        return torch.cat((whole[: self.num_shared], rows))[None]

    def split(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """[heads, P + B * L, size] -> [heads, P, size] and [heads, B, L, size]."""
        shared, rows = tensor.split((self.num_shared, self.num_rows * self.row_length), dim=1)
        return shared, rows.unflatten(1, (self.num_rows, self.row_length))


class _Heads(NamedTuple):
    """What a layer attends with."""

    query: Tensor
    key: Tensor
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
    """Query [1, heads, P + B * L, size], key and value [1, kv heads, P + B * L, size].

    Returns [1, P + B * L, heads, size]. Without `packing`: plain rows [B, heads, L, size]. The mask
    is None by our mask function; dropout is 0, for the base itself never trains.
    """
    scores = _Scores(
        query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, sliding_window
    )
    heads = _Heads(query, key, value)
    return (
        _attend(heads, scores) if packing is None else _attend_packed(heads, packing, scores)
    ), None


def _attend_packed(heads: _Heads, packing: Packing, scores: _Scores) -> Tensor:
    """[1, heads, P + B * L, size] -> [1, P + B * L, heads, size]."""
    shared, rows = zip(*(packing.split(tensor[0]) for tensor in heads), strict=True)
    query, *own = (tensor.transpose(0, 1) for tensor in rows)  # [B, heads, L, size]
    key, value = (
        torch.cat((common.expand(packing.num_rows, -1, -1, -1), tensor), dim=2)
        for common, tensor in zip(shared[1:], own, strict=True)
    )
    tail = _attend(_Heads(query, key, value), scores).flatten(0, 1)
    if not packing.num_shared:
        return tail[None]
    head = _attend(_Heads(*(tensor[None] for tensor in shared)), scores)
    return torch.cat((head[0], tail))[None]


def _attend(heads: _Heads, scores: _Scores) -> Tensor:
    """[n, heads, queries, size] by [n, kv heads, keys, size] -> [n, queries, heads, size]."""
    query, key, value = heads
    num_heads, num_queries, size = query.shape[1:]
    num_kv_heads, num_keys = key.shape[1:3]
    if num_keys > MAX_EAGER_TOKENS and scores.softcap is None:
        return _fused(heads, scores).transpose(1, 2)
    # Heads that share a key head are its queries.
    grouped = query.reshape(-1, num_heads // num_kv_heads * num_queries, size)
    probabilities = scores.probabilities(grouped, key.flatten(0, 1), num_queries)
    attended = torch.bmm(probabilities, value.flatten(0, 1))
    return attended.view(query.shape).transpose(1, 2)


def _fused(heads: _Heads, scores: _Scores) -> Tensor:
    positions = _positions(heads.query.shape[2], heads.key.shape[2], heads.query.device)
    seen = visible(*positions, scores.window)
    return F.scaled_dot_product_attention(
        *heads, attn_mask=seen, scale=scores.scaling, enable_gqa=True
    )


def _positions(num_queries: int, num_keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of queries [queries, 1], the last ones, and of keys [keys]."""
    keys = torch.arange(num_keys, device=device)
    return keys[num_keys - num_queries :, None], keys


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let the model's layers attend here (idempotent)."""
    use_attention(model, IMPLEMENTATION, packed_attention)
