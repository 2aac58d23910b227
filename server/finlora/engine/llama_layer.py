"""A decoder layer in one call, where all of its parts are our own kernels'.

With few rows half of a step on a small base is the calling of twenty modules and thirty operations
in every layer. What is computed is the same, bit by bit.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from finlora.engine.compiled_modules import CompiledMLP, CompiledRMSNorm
from finlora.engine.llama_attention import NativeLlamaAttention
from finlora.engine.lora import LoRALinear, LoRASlots
from finlora.engine.native_attention import NativeBatch
from finlora.engine.panel_linear import PanelLinear, max_rows
from finlora.engine.siblings import Sibling
from finlora.native.decoder_layer import DecoderLayer, Heads, Linear, Norm, Parts, Step

LIKE_LLAMA = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer)


class NativeDecoderLayer(nn.Module):
    """As the layer it is made of, whose parts keep their names; borrows the slots."""

    def __init__(self, layer: Any, native: DecoderLayer, slots: LoRASlots) -> None:
        super().__init__()
        self.self_attn: NativeLlamaAttention = layer.self_attn
        self.mlp: nn.Module = layer.mlp
        self.input_layernorm: nn.Module = layer.input_layernorm
        self.post_attention_layernorm: nn.Module = layer.post_attention_layernorm
        self._native = native
        self._slots = slots
        self._max_rows = max_rows()

    def forward(self, hidden_states: Tensor, **step: Any) -> Tensor:
        """[1, T, hidden] -> the same."""
        if self._fits(hidden_states.shape[1]):
            return self._in_one_call(hidden_states[0], **step)[None]
        return self.by_modules(hidden_states, **step)

    def by_modules(self, hidden_states: Tensor, **step: Any) -> Tensor:
        """The same by one module after the other."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **step)
        hidden_states = hidden_states + attended
        gated: Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + gated

    def _fits(self, num_rows: int) -> bool:
        """DoRA's magnitudes are left to modules, as are rows that torch multiplies faster."""
        return not self._slots.has_dora and (self._max_rows is None or num_rows <= self._max_rows)

    def _in_one_call(
        self,
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
        return self._native.run(rows, step)


def replace_layers(model: PreTrainedModel, slots: LoRASlots) -> int:
    """Put one call in place of each layer like Llama's, after its parts were replaced; how many."""
    num_replaced = 0
    for name, layer in list(model.named_modules()):
        # Of these very classes: one that is made from them may compute something of its own.
        parts = _parts(layer) if type(layer) in LIKE_LLAMA else None
        if parts is not None:
            model.set_submodule(name, NativeDecoderLayer(layer, DecoderLayer(parts), slots))
            num_replaced += 1
    return num_replaced


class _NoKernelError(Exception):
    """A part of a layer is not what the kernel computes."""


def _parts(layer: Any) -> Parts | None:
    """What the kernel takes; None: some part is no kernel's."""
    attention, mlp = layer.self_attn, layer.mlp
    try:
        _check(isinstance(attention, NativeLlamaAttention) and isinstance(mlp, CompiledMLP))
        return Parts(
            attention_norm=_norm(layer.input_layernorm),
            query_key_value=_linear(attention.q_proj, attention.k_proj, attention.v_proj),
            heads=_heads(attention),
            output=_linear(attention.o_proj),
            mlp_norm=_norm(layer.post_attention_layernorm),
            gate_up=_linear(mlp.gate_proj, mlp.up_proj),
            down=_linear(mlp.down_proj),
        )
    except _NoKernelError:
        return None


def _norm(norm: nn.Module) -> Norm:
    if not isinstance(norm, CompiledRMSNorm) or norm.weight.dtype is not torch.float32:
        raise _NoKernelError
    return Norm(norm.weight, norm.eps)


def _linear(*layers: nn.Module) -> Linear:
    """Of a layer, or of all siblings in their order."""
    joined = [m.joined if isinstance(m, Sibling) else m for m in layers]
    _check(all(other is joined[0] for other in joined))
    adapted = joined[0] if isinstance(joined[0], LoRALinear) else None
    base = joined[0] if adapted is None else adapted.base
    updates = None if adapted is None else adapted.layer_slots.updates
    if not isinstance(base, PanelLinear) or (adapted is not None and updates is None):
        raise _NoKernelError
    return Linear(base.panels, base.bias, updates)


def _heads(attention: NativeLlamaAttention) -> Heads:
    """Without norms of queries and keys."""
    _check(isinstance(attention.q_norm, nn.Identity) and isinstance(attention.k_norm, nn.Identity))
    return Heads(
        attention.num_heads,
        attention.num_kv_heads,
        attention.head_dim,
        attention.scores.window,
        attention.scores.scaling,
    )


def _check(holds: bool) -> None:
    if not holds:
        raise _NoKernelError
