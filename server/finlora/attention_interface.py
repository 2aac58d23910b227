"""What our attentions have in common, wherever they are plugged into transformers' models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Where a key is no later than its query and inside the window, by their positions."""
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


def additive_mask(queries: Tensor, keys: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a key is visible to its query, by their positions, -inf elsewhere."""
    seen = visible(queries, keys, window)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, -torch.inf)


def use_attention(model: PreTrainedModel, name: str, attend: Callable[..., Any]) -> None:
    """Let the model's layers attend by this function, without a mask tensor (idempotent)."""
    if model.config._attn_implementation != name:
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, _no_mask)
        model.set_attn_implementation(name)


def _no_mask(*_: object, **__: object) -> None:
    """Who sees whom follows from the batch."""


def sliding_window(attention: Any) -> int | None:
    """Of a layer like Llama's. Qwen's layers have windows of their own, Mistral's the model's."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window  # type: ignore[no-any-return]
    return getattr(attention.config, "sliding_window", None)
