"""Attention of a training batch packed into one row of tokens: the tokens that all rows start with,
then what follows in each row.

Everything but attention sees [1, P + B * L] tokens and computes the shared ones once. Here the rows
look at the shared keys without a copy of them for each row, and heads that share a key head become
its queries. It keeps no state between layers, so blocks may be computed again in the backward pass.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from finlora.attention_interface import use_attention, visible

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

    def rows(self, tensor: Tensor) -> Tensor:
        """What follows the shared tokens: [heads, P + B * L, size] -> [heads, B, L, size]."""
        own = tensor[:, self.num_shared :]
        return own.view(len(own), self.num_rows, self.row_length, -1)


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

    def probabilities(self, products: Tensor) -> Tensor:
        """[..., queries, keys] of each; the last queries and keys are the same tokens."""
        scores = products * self.scaling
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        hidden = ~self.visible(products.shape[-2], products.shape[-1], products.device)
        # Rounded to the compute type once, as in transformers' eager attention.
        return scores.masked_fill(hidden, -torch.inf).float().softmax(-1).to(products.dtype)

    def visible(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
        """[queries, keys]: keys no later than the query, and inside the window."""
        keys = torch.arange(num_keys, device=device)
        queries = keys[num_keys - num_queries :, None]
        return visible(queries, keys, self.window)


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
    if packing is None:
        return _attend(_Heads(query, key, value), scores).transpose(1, 2), None
    shared = _Heads(*(t[0, :, : packing.num_shared] for t in (query, key, value)))
    rows = _Heads(*(packing.rows(t[0]) for t in (query, key, value)))
    is_long = packing.num_shared + packing.row_length > MAX_EAGER_TOKENS
    attended = (_attend_long if is_long else _attend_rows)(rows, shared, scores)
    # [heads, B, L, size] -> [B * L, heads, size]
    tail = attended.permute(1, 2, 0, 3).flatten(0, 1)
    if not packing.num_shared:
        return tail[None], None
    head = _attend(_Heads(*(tensor[None] for tensor in shared)), scores)
    return torch.cat((head[0].transpose(0, 1), tail))[None], None


def _attend(heads: _Heads, scores: _Scores) -> Tensor:
    """[n, heads, queries, size] by [n, kv heads, keys, size]."""
    query, key, value = heads
    num_heads, num_queries, size = query.shape[1:]
    num_kv_heads, num_keys = key.shape[1:3]
    if num_keys > MAX_EAGER_TOKENS and scores.softcap is None:
        return _fused(heads, scores)
    grouped = query.reshape(-1, num_kv_heads, num_heads // num_kv_heads * num_queries, size)
    products = torch.matmul(grouped, key.transpose(2, 3))
    products = products.view(-1, num_heads, num_queries, num_keys)
    probabilities = scores.probabilities(products).view(*grouped.shape[:3], num_keys)
    return torch.matmul(probabilities, value).view(query.shape)


def _attend_rows(rows: _Heads, shared: _Heads, scores: _Scores) -> Tensor:
    """[heads, B, L, size] by own [kv heads, B, L, size] and shared [kv heads, P, size]."""
    num_rows, length, size = rows.query.shape[1:]
    num_kv_heads, num_shared = shared.key.shape[:2]
    # [kv heads, B, group, L, size]: one product with the shared keys, one with each row's own.
    grouped = rows.query.view(num_kv_heads, -1, num_rows, length, size).transpose(1, 2)
    per_row = grouped.reshape(num_kv_heads, num_rows, -1, size)
    common = torch.matmul(per_row.flatten(1, 2), shared.key.transpose(1, 2))
    common = common.view(*grouped.shape[:4], num_shared)
    own = torch.matmul(per_row, rows.key.transpose(2, 3)).view(*grouped.shape[:4], length)
    probabilities = scores.probabilities(torch.cat((common, own), dim=-1))
    common, own = probabilities.split((num_shared, length), dim=-1)
    attended = torch.matmul(own.reshape(*per_row.shape[:3], length), rows.value)
    if num_shared:
        flat = common.reshape(num_kv_heads, -1, num_shared)
        attended = attended + torch.matmul(flat, shared.value).view(attended.shape)
    return attended.view(grouped.shape).transpose(1, 2).reshape(rows.query.shape)


def _attend_long(rows: _Heads, shared: _Heads, scores: _Scores) -> Tensor:
    """The same for long rows: shared keys are repeated, but no square of the length is kept."""
    num_rows = rows.query.shape[1]
    key, value = (
        torch.cat((common[:, None].expand(-1, num_rows, -1, -1), own), dim=2).transpose(0, 1)
        for common, own in ((shared.key, rows.key), (shared.value, rows.value))
    )
    return _attend(_Heads(rows.query.transpose(0, 1), key, value), scores).transpose(0, 1)


def _fused(heads: _Heads, scores: _Scores) -> Tensor:
    visible = scores.visible(heads.query.shape[2], heads.key.shape[2], heads.query.device)
    return F.scaled_dot_product_attention(
        *heads, attn_mask=visible, scale=scores.scaling, enable_gqa=True
    )


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let the model's layers attend here (idempotent)."""
    use_attention(model, IMPLEMENTATION, packed_attention)
