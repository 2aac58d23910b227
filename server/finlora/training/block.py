"""A Llama block on packed rows, in few operations that keep little for their backward pass.

Norms and the gated product are computed again; layers that read the same rows are one operation.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from finlora.attention_interface import sliding_window
from finlora.training.fused import GATED, FusedMLP, FusedRMSNorm
from finlora.training.lora_layer import project
from finlora.training.lora_product import ROWS
from finlora.training.packed_attention import packed_attention
from finlora.training.packing import Packing
from finlora.training.rotary import rotate

# Blocks that compute what Llama's do; they differ in biases and windows.
LLAMA_BLOCKS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer)


class PackedBlock(GradientCheckpointingLayer):
    """As the block it is made of, whose parts keep their names, so adapters find them."""

    def __init__(self, block: Any, *, is_last: bool) -> None:
        super().__init__()
        self._plain = block.forward
        self._is_last = is_last
        self.self_attn: Any = block.self_attn
        self.mlp: Any = block.mlp
        self.input_layernorm: FusedRMSNorm = block.input_layernorm
        self.post_attention_layernorm: FusedRMSNorm = block.post_attention_layernorm

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        packing: Packing | None = None,
        wanted: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        """[1, tokens, hidden] -> the same; the last block's `wanted` tokens alone.

        Rows that are not packed take the block's own way, where hooks on its parts are called.
        """
        if packing is None:
            return self._plain(hidden_states, position_embeddings=position_embeddings, **others)  # type: ignore[no-any-return]
        attended = self._attend(hidden_states, position_embeddings, packing)
        if wanted is not None and self._is_last:
            attended, hidden_states = attended[:, wanted], hidden_states[:, wanted]
        (update,) = project(ROWS, (attended,), (self.self_attn.o_proj,))
        hidden_states = hidden_states + update
        norm, mlp = self.post_attention_layernorm.recipe, self.mlp
        gate_up = project(norm, (hidden_states,), (mlp.gate_proj, mlp.up_proj))
        (update,) = project(GATED, gate_up, (mlp.down_proj,))
        return hidden_states + update

    def _attend(self, x: Tensor, angles: tuple[Tensor, Tensor], packing: Packing) -> Tensor:
        attention = self.self_attn
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        heads = (*x.shape[:-1], -1, attention.head_dim)
        query, key, value = (
            y.view(heads) for y in project(self.input_layernorm.recipe, (x,), layers)
        )
        query, key = rotate(query, *angles), rotate(key, *angles)
        attended, _ = packed_attention(
            attention,
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            None,
            scaling=attention.scaling,
            sliding_window=sliding_window(attention),
            packing=packing,
        )
        return attended.flatten(2)


def pack_blocks(model: PreTrainedModel) -> int:
    """Replace the blocks whose norms and MLP are fused; returns how many were."""
    layers: nn.ModuleList = model.get_decoder().layers
    replaced = 0
    for i, block in enumerate(layers):
        if _is_llamas(block):
            layers[i] = PackedBlock(block, is_last=i == len(layers) - 1)
            replaced += 1
    return replaced


def gives_wanted(model: PreTrainedModel) -> bool:
    """Whether the last block computes the `wanted` tokens alone."""
    return isinstance(model.get_decoder().layers[-1], PackedBlock)


def _is_llamas(block: nn.Module) -> bool:
    return (
        isinstance(block, LLAMA_BLOCKS)
        and isinstance(block.input_layernorm, FusedRMSNorm)
        and isinstance(block.post_attention_layernorm, FusedRMSNorm)
        and isinstance(block.mlp, FusedMLP)
    )
