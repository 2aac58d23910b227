"""Decoder layers as Llama has them in one call, on four-bit weights; see decoder_layer.c."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from finlora.native.four_bit import PanelWeight
from finlora.native.library import address, load
from finlora.native.lora import SlotUpdates
from finlora.native.paired import PairedWeight


class _NormRecord(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("eps", ctypes.c_float))


class _LinearRecord(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("adapters", ctypes.c_void_p),
    )


class _LayerRecord(ctypes.Structure):
    _fields_ = (
        ("attention_norm", _NormRecord),
        ("mlp_norm", _NormRecord),
        ("query_norm", _NormRecord),
        ("key_norm", _NormRecord),
        ("query_key_value", _LinearRecord),
        ("output", _LinearRecord),
        ("gate_up", _LinearRecord),
        ("down", _LinearRecord),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("scaling", ctypes.c_float),
    )


class _StepRecord(ctypes.Structure):
    _fields_ = (
        ("num_tokens", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("pools", ctypes.c_void_p),
        ("new_pages", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("spans", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("num_spans", ctypes.c_int64),
        ("segments", ctypes.c_void_p),
        ("num_segments", ctypes.c_int64),
        ("half", ctypes.c_int),
        ("num_threads", ctypes.c_int),
    )


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm."""

    weight: Tensor  # [hidden] or [head size]
    eps: float


@dataclass(frozen=True, slots=True)
class Linear:
    """A layer, or joined ones, and the slots that adapt it."""

    weight: PanelWeight | PairedWeight
    bias: Tensor | None
    adapters: SlotUpdates | None


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of an attention, and what its scores are."""

    num_heads: int
    num_kv_heads: int
    size: int  # a multiple of 16
    window: int | None
    scaling: float
    query_norm: Norm | None
    key_norm: Norm | None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a layer is made of; what is joined lies in the order of the name."""

    attention_norm: Norm
    query_key_value: Linear
    heads: Heads
    output: Linear
    mlp_norm: Norm
    gate_up: Linear
    down: Linear


class Step(NamedTuple):
    """What layers read and write beside rows; see `attention.attend`, `SlotUpdates.add`."""

    cos: Tensor  # [T, head size]
    sin: Tensor
    pools: Sequence[Tensor]  # of each layer
    new_pages: Tensor  # [T]
    table: Tensor
    spans: Tensor
    segments: Tensor | None


class DecoderLayers:
    """Layers of the same sizes, one after the other; borrows the tensors of their parts."""

    def __init__(self, layers: Sequence[Parts]) -> None:
        """Everything is of one type: float32, or bfloat16 with paired weights.

        Raises KernelsUnusableError.
        """
        self._layers = layers  # the records have nothing but addresses
        self._library = load()
        self._records = (_LayerRecord * len(layers))(*map(_layer, layers))
        parts = layers[0]
        inner = parts.down.weight.in_features
        self.dtype = parts.attention_norm.weight.dtype
        self._hidden = parts.down.weight.out_features
        outputs = max(parts.query_key_value.weight.out_features, 2 * inner)
        inputs = max(parts.heads.num_heads * parts.heads.size, inner)
        self._workspace = self._hidden + outputs + inputs  # numbers for each token

    def __len__(self) -> int:
        return len(self._layers)

    def run(self, x: Tensor, step: Step, num_layers: int) -> Tensor:
        """[T, hidden] -> the same after the first layers, in a new tensor.

        Keys and values go to their pages.
        """
        assert 0 < num_layers <= len(self) == len(step.pools)
        assert {t.dtype for t in (x, step.cos, step.sin, *step.pools)} == {self.dtype}
        x, cos, sin = x.contiguous(), step.cos.contiguous(), step.sin.contiguous()
        num_tokens = x.shape[0]
        segments = step.segments
        pools = (ctypes.c_void_p * len(self))(*(pool.data_ptr() for pool in step.pools))
        record = _StepRecord(
            num_tokens,
            address(cos),
            address(sin),
            ctypes.addressof(pools),
            address(step.new_pages),
            address(step.table),
            address(step.spans),
            step.table.stride(0),
            step.spans.shape[0],
            None if segments is None else address(segments),
            0 if segments is None else segments.shape[0],
            self.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        out, workspace = torch.empty_like(x), x.new_empty(num_tokens, self._workspace)
        self._library.finlora_decoder_layers(
            self._records,
            ctypes.c_int64(num_layers),
            ctypes.byref(record),
            address(x),
            address(out),
            address(workspace),
        )
        return out


def sizes(parts: Parts) -> tuple[int, ...]:
    """What layers of one call have in common."""
    linears = (parts.query_key_value, parts.output, parts.gate_up, parts.down)
    shapes = ((linear.weight.in_features, linear.weight.out_features) for linear in linears)
    return (*chain.from_iterable(shapes), parts.heads.num_heads, parts.heads.size)


def _layer(parts: Parts) -> _LayerRecord:
    heads = parts.heads
    return _LayerRecord(
        _norm(parts.attention_norm),
        _norm(parts.mlp_norm),
        _norm(heads.query_norm),
        _norm(heads.key_norm),
        _linear(parts.query_key_value),
        _linear(parts.output),
        _linear(parts.gate_up),
        _linear(parts.down),
        heads.num_heads,
        heads.num_kv_heads,
        heads.size,
        heads.window or 0,
        heads.scaling,
    )


def _norm(norm: Norm | None) -> _NormRecord:
    return _NormRecord(None, 0.0) if norm is None else _NormRecord(address(norm.weight), norm.eps)


def _linear(linear: Linear) -> _LinearRecord:
    bias, adapters = linear.bias, linear.adapters
    return _LinearRecord(
        ctypes.addressof(linear.weight.described),
        None if bias is None else address(bias),
        None if adapters is None else ctypes.addressof(adapters.described),
    )
