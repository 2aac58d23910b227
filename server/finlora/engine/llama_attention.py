"""Llama's attention on a packed batch in few operations: rotary embedding and the way into the KV
cache are one, and nothing is copied on the way from the projections to the cache.

In transformers' own module they are twenty small operations, which on a small base cost more than
attention itself.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from finlora.attention_interface import sliding_window
from finlora.engine.attention import Scores
from finlora.engine.native_attention import NativeBatch
from finlora.native.rotary import PAIRED_LANES, rotate_and_store

# They differ in biases, windows and in norms of queries and keys.
LIKE_LLAMA = (LlamaAttention, MistralAttention, Qwen2Attention, Qwen3Attention)


class NativeLlamaAttention(nn.Module):
    """As the module it is made of, whose parts keep their names, so adapters find them."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.layer_idx: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self.num_heads: int = attention.config.num_attention_heads
        self.num_kv_heads: int = attention.config.num_key_value_heads
        self.scores = Scores(attention.scaling, None, sliding_window(attention))
        self.q_proj: nn.Module = attention.q_proj
        self.k_proj: nn.Module = attention.k_proj
        self.v_proj: nn.Module = attention.v_proj
        self.o_proj: nn.Module = attention.o_proj
        self.q_norm: nn.Module = getattr(attention, "q_norm", nn.Identity())
        self.k_norm: nn.Module = getattr(attention, "k_norm", nn.Identity())

    def attend(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_batch: NativeBatch,
        **_: object,
    ) -> Tensor:
        """[1, T, hidden] -> [1, T, heads * size], before the output layer; angles [1, T, size]."""
        heads = (hidden_states.shape[1], -1, self.head_dim)
        query: Tensor = self.q_norm(self.q_proj(hidden_states).view(heads))
        key: Tensor = self.k_norm(self.k_proj(hidden_states).view(heads))
        value: Tensor = self.v_proj(hidden_states).view(heads)
        cos, sin = position_embeddings
        pool = attention_batch.pools[self.layer_idx]
        rotate_and_store(query, key, value, (cos[0], sin[0]), pool, attention_batch.new_pages)
        return attention_batch.attend(query, pool, self.scores).flatten(1)[None]

    def forward(self, hidden_states: Tensor, **step: Any) -> tuple[Tensor, None]:
        """[1, T, hidden] -> the same; as transformers' layers call it."""
        return self.o_proj(self.attend(hidden_states, **step)), None


def replace_attention(model: PreTrainedModel) -> int:
    """Put our own in place of each module like Llama's, for native batches; how many."""
    # Of these very classes: one that is made from them may compute something of its own.
    found = [(name, m) for name, m in model.named_modules() if type(m) in LIKE_LLAMA]
    fitting = [(name, m) for name, m in found if m.head_dim % PAIRED_LANES == 0]
    for name, attention in fitting:
        model.set_submodule(name, NativeLlamaAttention(attention))
    return len(fitting)
