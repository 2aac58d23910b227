"""A decoder layer on a packed batch: one call where all of its parts are our own kernels'; the last
one for no more rows than somebody asked logits of.

With few rows half of a step on a small base is the calling of twenty modules and thirty operations
in every layer. What is computed is the same either way, bit by bit.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from finlora.engine.llama_attention import NativeLlamaAttention
from finlora.engine.lora import LoRASlots
from finlora.engine.lora_batch import LoRABatch
from finlora.engine.native_attention import NativeBatch
from finlora.engine.native_parts import native_parts
from finlora.engine.packed_linear import StepRows
from finlora.engine.panel_linear import max_rows
from finlora.native.decoder_layer import DecoderLayer, Step

# They differ in their attention.
LIKE_LLAMA = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)


@dataclass(frozen=True, slots=True)
class WantedRows:
    """The rows of a step that anybody asked logits of, where there are others too."""

    index: Tensor  # [n], ascending
    adapters: LoRABatch | None  # of these rows
    num_decodes: int  # of them


class LlamaLayer(nn.Module):
    """As the layer it is made of, whose parts keep their names; borrows slots and rows."""

    def __init__(self, layer: Any, slots: LoRASlots, rows: StepRows, *, is_last: bool) -> None:
        super().__init__()
        self.self_attn: NativeLlamaAttention = layer.self_attn
        self.mlp: nn.Module = layer.mlp
        self.input_layernorm: nn.Module = layer.input_layernorm
        self.post_attention_layernorm: nn.Module = layer.post_attention_layernorm
        parts = native_parts(layer)
        self._native = None if parts is None else DecoderLayer(parts)
        in_float32 = self._native is not None and self._native.dtype is torch.float32
        self._max_rows = max_rows() if in_float32 else None
        self._slots = slots
        self._rows = rows
        self._is_last = is_last

    def forward(
        self, hidden_states: Tensor, *, wanted: WantedRows | None = None, **step: Any
    ) -> Tensor:
        """[1, T, hidden] -> the same; the last layer's `wanted` rows alone."""
        if wanted is not None and self._is_last:
            return self._of_rows(hidden_states, wanted, **step)
        if self._native is not None and self._fits(hidden_states.shape[1]):
            return self._in_one_call(self._native, hidden_states[0], **step)[None]
        return self._by_modules(hidden_states, **step)

    def _by_modules(self, hidden_states: Tensor, **step: Any) -> Tensor:
        """The same by one module after the other."""
        attended = self.self_attn.attend(self.input_layernorm(hidden_states), **step)
        return self._behind_attention(hidden_states, attended)

    def _of_rows(self, hidden_states: Tensor, wanted: WantedRows, **step: Any) -> Tensor:
        attended = self.self_attn.attend(self.input_layernorm(hidden_states), **step)
        hidden_states, attended = hidden_states[:, wanted.index], attended[:, wanted.index]
        if not wanted.index.shape[0]:
            return hidden_states
        # What layers are told of a step's rows; behind this one the step has no more.
        self._slots.batch, self._rows.num_decodes = wanted.adapters, wanted.num_decodes
        return self._behind_attention(hidden_states, attended)

    def _behind_attention(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        hidden_states = hidden_states + self.self_attn.o_proj(attended)
        gated: Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + gated

    def _fits(self, num_rows: int) -> bool:
        """Rows that torch multiplies faster are left to modules."""
        return self._max_rows is None or num_rows <= self._max_rows

    def _in_one_call(
        self,
        native: DecoderLayer,
        rows: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_batch: NativeBatch,
        **_: object,
    ) -> Tensor:
        cos, sin = position_embeddings
        adapters = self._slots.batch
        step = Step(
            cos[0],
            sin[0],
            attention_batch.pools[self.self_attn.layer_idx],
            attention_batch.new_pages,
            attention_batch.table,
            attention_batch.spans,
            None if adapters is None else adapters.described,
        )
        return native.run(rows, step)


def replace_layers(model: PreTrainedModel, slots: LoRASlots, rows: StepRows) -> bool:
    """Put our own in place of each layer like Llama's, after its parts were replaced.

    Whether the last layer gives the wanted rows alone.
    """
    # Of these very classes: one that is made from them may compute something of its own.
    found = [(name, m) for name, m in model.named_modules() if type(m) in LIKE_LLAMA]
    own = [(n, m) for n, m in found if isinstance(m.self_attn, NativeLlamaAttention)]
    num_layers: int = model.config.get_text_config().num_hidden_layers
    for name, layer in own:
        is_last = layer.self_attn.layer_idx == num_layers - 1
        model.set_submodule(name, LlamaLayer(layer, slots, rows, is_last=is_last))
    return len(own) == num_layers
