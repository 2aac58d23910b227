"""Which decoder layers are made of our own kernels' parts alone, and what these are."""

from typing import Any

import torch
from torch import Tensor, nn

from finlora.engine.borrowed_slots import BorrowedSlots
from finlora.engine.compiled_modules import CompiledMLP, CompiledRMSNorm
from finlora.engine.llama_attention import NativeLlamaAttention
from finlora.engine.lora import LoRALinear
from finlora.engine.paired_linear import PairedLinear
from finlora.engine.panel_linear import PanelLinear
from finlora.engine.siblings import Sibling
from finlora.native.decoder_layer import Heads, Linear, Norm, Parts
from finlora.native.four_bit import PanelWeight
from finlora.native.lora import SlotUpdates
from finlora.native.paired import PairedWeight


class _NoKernelError(Exception):
    """A part of a layer is not what the kernel computes."""


def native_parts(layer: Any) -> Parts | None:
    """Of a layer like Llama's whose modules were replaced; None: some part has no kernel."""
    attention, mlp = layer.self_attn, layer.mlp
    try:
        _check(isinstance(attention, NativeLlamaAttention) and isinstance(mlp, CompiledMLP))
        parts = Parts(
            attention_norm=_norm(layer.input_layernorm),
            query_key_value=_linear(attention.q_proj, attention.k_proj, attention.v_proj),
            heads=_heads(attention),
            output=_linear(attention.o_proj),
            mlp_norm=_norm(layer.post_attention_layernorm),
            gate_up=_linear(mlp.gate_proj, mlp.up_proj),
            down=_linear(mlp.down_proj),
        )
        _check(_are_of_one_type(parts))
        return parts
    except _NoKernelError:
        return None


def _norm(norm: nn.Module) -> Norm:
    if not isinstance(norm, CompiledRMSNorm):
        raise _NoKernelError
    return Norm(norm.weight, norm.eps)


def _linear(*layers: nn.Module) -> Linear:
    """Of a layer, or of all siblings in their order."""
    joined = [m.joined if isinstance(m, Sibling) else m for m in layers]
    _check(all(other is joined[0] for other in joined))
    adapted = joined[0]
    base, updates = adapted, None
    if isinstance(adapted, LoRALinear):
        base, updates = adapted.base, _updates(adapted)
    if not isinstance(base, PanelLinear | PairedLinear) or not base.computes_alone:
        raise _NoKernelError
    return Linear(base.panels, base.bias, updates)


def _updates(adapted: LoRALinear) -> SlotUpdates:
    if not isinstance(adapted.layer_slots, BorrowedSlots):
        raise _NoKernelError
    return adapted.layer_slots.updates


def _heads(attention: NativeLlamaAttention) -> Heads:
    return Heads(
        attention.num_heads,
        attention.num_kv_heads,
        attention.head_dim,
        attention.scores.window,
        attention.scores.scaling,
        _head_norm(attention.q_norm),
        _head_norm(attention.k_norm),
    )


def _are_of_one_type(parts: Parts) -> bool:
    """Whether all computes in the type of the first norm, as four-bit layers of its kind do."""
    dtype = parts.attention_norm.weight.dtype
    kind = PairedWeight if dtype is torch.bfloat16 else PanelWeight
    linears = (parts.query_key_value, parts.output, parts.gate_up, parts.down)
    norms = (parts.mlp_norm, parts.heads.query_norm, parts.heads.key_norm)
    vectors: list[Tensor | None] = [linear.bias for linear in linears]
    vectors += [norm.weight for norm in norms if norm is not None]
    return all(isinstance(linear.weight, kind) for linear in linears) and all(
        vector.dtype is dtype for vector in vectors if vector is not None
    )


def _head_norm(norm: nn.Module) -> Norm | None:
    return None if isinstance(norm, nn.Identity) else _norm(norm)


def _check(holds: bool) -> None:
    if not holds:
        raise _NoKernelError
