"""Decoder layers on a packed batch: one call for all where their parts are our own kernels'; the
last one for no more rows than somebody asked logits of.

With few rows half of a step on a small base is the calling of twenty modules and thirty operations
in every layer. What is computed is the same either way, bit by bit.
"""

from collections.abc import Sequence
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
from finlora.engine.panel_linear import max_rows
from finlora.engine.wide import StepRows
from finlora.native.decoder_layer import DecoderLayers, Step, sizes

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
        self._slots = slots
        self._rows = rows
        self._is_last = is_last

    def forward(
        self, hidden_states: Tensor, *, wanted: WantedRows | None = None, **step: Any
    ) -> Tensor:
        """[1, T, hidden] -> the same; the last layer's `wanted` rows alone."""
        if wanted is not None and self._is_last:
            return self._of_rows(hidden_states, wanted, **step)
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


class LayersInOneCall:
    """What a model calls in place of one layer after the other."""

    def __init__(
        self, layers: Sequence[LlamaLayer], native: DecoderLayers, slots: LoRASlots
    ) -> None:
        self._layers = layers
        self._native = native
        self._slots = slots
        self._max_rows = max_rows() if native.dtype is torch.float32 else None

    def __call__(
        self, hidden_states: Tensor, *, wanted: WantedRows | None = None, **step: Any
    ) -> Tensor:
        """[1, T, hidden] -> the same; or, of the last layer, the `wanted` rows."""
        if not self._fits(hidden_states.shape[1]):
            return self._one_by_one(hidden_states, wanted=wanted, **step)
        # The kernel has no last layer of few rows.
        num_native = len(self._layers) - (wanted is not None)
        if num_native:
            hidden_states = self._natively(hidden_states[0], num_native, **step)[None]
        for layer in self._layers[num_native:]:
            hidden_states = layer(hidden_states, wanted=wanted, **step)
        return hidden_states

    def _one_by_one(self, hidden_states: Tensor, **step: Any) -> Tensor:
        for layer in self._layers:
            hidden_states = layer(hidden_states, **step)
        return hidden_states

    def _fits(self, num_rows: int) -> bool:
        """Rows that torch multiplies faster are left to modules."""
        return self._max_rows is None or num_rows <= self._max_rows

    def _natively(
        self,
        rows: Tensor,
        num_layers: int,
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
            attention_batch.pools,
            attention_batch.new_pages,
            attention_batch.table,
            attention_batch.spans,
            None if adapters is None else adapters.described,
        )
        return self._native.run(rows, step, num_layers)


class LlamaStack(nn.ModuleList):
    """Layers under their names; a model, which walks over a slice of them, meets one for all."""

    def __init__(self, layers: Sequence[LlamaLayer], in_one_call: LayersInOneCall) -> None:
        super().__init__(layers)
        self.in_one_call = in_one_call

    def __getitem__(self, index: int | slice) -> Any:
        """A layer, or, of a slice, what is called for all."""
        return [self.in_one_call] if isinstance(index, slice) else super().__getitem__(index)


def replace_layers(model: PreTrainedModel, slots: LoRASlots, rows: StepRows) -> bool:
    """Put our own in place of each layer like Llama's, after its parts were replaced.

    Whether the last layer gives the wanted rows alone.
    """
    # Of these very classes: one that is made from them may compute something of its own.
    found = [(name, m) for name, m in model.named_modules() if type(m) in LIKE_LLAMA]
    named = [(n, m) for n, m in found if isinstance(m.self_attn, NativeLlamaAttention)]
    num_layers: int = model.config.get_text_config().num_hidden_layers
    own = {
        name: LlamaLayer(layer, slots, rows, is_last=layer.self_attn.layer_idx == num_layers - 1)
        for name, layer in named
    }
    for name, layer in own.items():
        model.set_submodule(name, layer)
    if len(own) != num_layers:
        return False
    stack = _stack(list(own.values()), slots)
    if stack is not None:
        model.set_submodule(next(iter(own)).rpartition(".")[0], stack)
    return True


def _stack(layers: Sequence[LlamaLayer], slots: LoRASlots) -> LlamaStack | None:
    """None: some part of a layer has no kernel, or the layers are of several sizes."""
    parts = [native_parts(layer) for layer in layers]
    native = [part for part in parts if part is not None]
    if len(native) < len(layers) or len(set(map(sizes, native))) > 1:
        return None
    return LlamaStack(layers, LayersInOneCall(layers, DecoderLayers(native), slots))
