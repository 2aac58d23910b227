"""Attention over the paged KV cache by our own kernel, on CPUs that can run it.

It reads keys and values where they lie; no group is padded, nothing is gathered. What is computed
for a token depends on its position alone, not even in the last bit on its batch mates.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from finlora.engine.attention import Scores, SequenceSpan, pages_of_new_tokens
from finlora.engine.kv_cache import KVLayout, Pages
from finlora.native import attention, library


@dataclass(frozen=True, slots=True)
class NativeBatch:
    """A step's sequences as the kernel takes them."""

    pools: list[Tensor]
    new_pages: Tensor  # [T]
    table: Tensor  # [sequences, positions], shared with the cache
    spans: Tensor  # [n, 4]: row of the table, first position, number of tokens, first row

    def attend(self, query: Tensor, pool: Tensor, scores: Scores) -> Tensor:
        """[T, heads, head size] -> the same."""
        window, scaling = scores.window, scores.scaling
        return attention.attend(query, pool, self.table, self.spans, window=window, scaling=scaling)


def build_batch(pools: list[Tensor], table: Pages, spans: list[SequenceSpan]) -> NativeBatch:
    """Describe a packed batch; pages must be already assigned."""
    counts = np.array([span.num_tokens for span in spans])
    rows = np.array([span.row for span in spans])
    starts = np.array([span.start for span in spans])
    described = np.stack((rows, starts, counts, counts.cumsum() - counts), 1)
    return NativeBatch(
        pools,
        pages_of_new_tokens(table, spans),
        torch.from_numpy(table),
        torch.from_numpy(described),
    )


def fits(model: PreTrainedModel, layout: KVLayout) -> bool:
    """Whether the kernel computes what the model asks for, here."""
    config = model.config.get_text_config()
    return (
        model.device.type == "cpu"
        and getattr(config, "attn_logit_softcapping", None) is None
        and attention.fits(
            config.num_attention_heads, layout.num_kv_heads, layout.head_dim, layout.dtype
        )
        and library.obstacle() is None
    )
