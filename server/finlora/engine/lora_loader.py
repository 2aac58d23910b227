"""From an adapter's bytes to weights that fit a slot; runs on the loader thread."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import Tensor, nn

from finlora.adapters.adapter import Adapter
from finlora.adapters.validation import LoRALayer, parse_weights
from finlora.bases.spec import BaseSpec
from finlora.engine.lora_weights import AdapterWeights, LoRAWeights
from finlora.engine.siblings import Member
from finlora.errors import AdapterLoadError
from finlora.threads import one_thread


def squared_row_norms(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """||W||^2 of every output row, [out_features] in float32, for DoRA.

    Call it before the layers are packed for the CPU: only then can they be dequantised.
    """
    return {name: _dequantized(model.get_submodule(name)).square().sum(1) for name in names}


def _dequantized(layer: nn.Module) -> Tensor:
    weight: Any = layer.weight
    plain: Tensor = weight.data
    if isinstance(layer, Linear4bit):
        plain = dequantize_4bit(weight.data, weight.quant_state)
    elif isinstance(layer, Linear8bitLt):
        scales: Any = weight.SCB if weight.SCB is not None else layer.state.SCB
        plain = weight.data.float() * (scales.float() / 127)[:, None]
    return plain.float()


class LoRALoader:
    """Turns registered adapters into slot-ready weights for one base."""

    def __init__(
        self,
        read: Callable[[Adapter], bytes],
        spec: BaseSpec,
        members: Mapping[str, Member],
        row_norms: Mapping[str, Tensor],
        *,
        max_rank: int,
        dtype: torch.dtype,
    ) -> None:
        self._read = read
        self._spec = spec
        self._members = members
        self._row_norms = row_norms
        self._max_rank = max_rank
        self._dtype = dtype

    def __call__(self, adapter: Adapter) -> AdapterWeights:
        """Read, verify and convert. Raises AdapterError."""
        with torch.inference_mode(), one_thread():
            layers = parse_weights(
                adapter.config, self._read(adapter), self._spec, max_rank=self._max_rank
            )
            stays = self._dtype is torch.float32 and all(map(_stays_bfloat16, layers.values()))
            b = _scaled_and_transposed(layers, torch.bfloat16 if stays else self._dtype)
            return AdapterWeights({n: self._weights(n, x, b[n]) for n, x in layers.items()})

    def _weights(self, name: str, layer: LoRALayer, b: Tensor) -> LoRAWeights:
        magnitude = None
        if layer.magnitude is not None:
            magnitude = self._dora_scale(name, layer).to(self._dtype)
        return LoRAWeights(layer.a.to(b.dtype), b, magnitude)

    def _dora_scale(self, name: str, layer: LoRALayer) -> Tensor:
        """g = m / ||W + gamma B A|| without dequantising W: [out_features], float32.

        ||W + gBA||^2 = ||W||^2 + 2g sum_r B * (W A^T) + g^2 rowsum((B (A A^T)) * B), where W A^T is
        the layer applied to the rows of A.
        """
        assert layer.magnitude is not None
        a, b = layer.a.float(), layer.b.float() * layer.scaling
        norms = self._row_norms[name]
        applied = self._members[name].product(a.to(norms.device, self._dtype)).float()
        cross = 2 * (b * applied.T.cpu()).sum(1)  # applied: [r, out_features]
        square = ((b @ (a @ a.T)) * b).sum(1)
        squared_norm = norms.cpu() + cross + square
        if not bool((squared_norm > 0).all()):
            raise AdapterLoadError(f"{name}: a row of W + B A is zero, which DoRA cannot scale")
        scale: Tensor = layer.magnitude.float() / squared_norm.sqrt()
        return scale


def _scaled_and_transposed(
    layers: Mapping[str, LoRALayer], dtype: torch.dtype
) -> dict[str, Tensor]:
    """gamma B^T of every layer, [r, out_features].

    Layers that are alike go through together: a base has hundreds, and as many calls would take
    longer than the numbers do.
    """
    alike: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, layer in layers.items():
        alike[layer.b.shape, layer.b.dtype, layer.scaling, _stays_bfloat16(layer)].append(name)
    made: dict[str, Tensor] = {}
    for names in alike.values():
        layer = layers[names[0]]
        scaled_in = torch.bfloat16 if _stays_bfloat16(layer) else torch.float32
        b = torch.stack([layers[name].b for name in names]).transpose(1, 2)
        b = b.to(scaled_in, copy=True, memory_format=torch.contiguous_format)
        made.update(zip(names, b.mul_(layer.scaling).to(dtype).unbind(), strict=True))
    return made


def _stays_bfloat16(layer: LoRALayer) -> bool:
    """Whether bfloat16 holds gamma B as exactly as B: gamma is a power of two.

    Half of the bytes of float32 to keep, and to read in every step, for the same results.
    """
    is_narrow = layer.a.dtype is layer.b.dtype is torch.bfloat16
    return is_narrow and math.frexp(layer.scaling)[0] == 0.5
