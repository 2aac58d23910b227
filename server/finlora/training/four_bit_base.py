"""Exchanges a base's four-bit layers for what computes faster on a CPU with the same numbers.

bitsandbytes' own are dequantised twice in every step, into memory.
"""

import logging
from typing import Any

import psutil
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from transformers import PreTrainedModel

from finlora.bases.dequantization import served_weight
from finlora.errors import BaseModelError
from finlora.model import is_packable
from finlora.training.four_bit_layer import FourBitLayer, is_computable

logger = logging.getLogger(__name__)

MAX_MEMORY_SHARE = 0.5  # of what is free now; activations and optimizer need the rest


def check_double_quantised(model: nn.Module) -> int:
    """Number of four-bit layers. Raises BaseModelError unless all are NF4 with double quantisation.

    Training on another quantisation than the configuration says is an error nobody would see.
    """
    layers = _four_bit_layers(model)
    for name, layer in layers.items():
        weight: Any = layer.weight
        state = weight.quant_state
        if state is None or state.quant_type != "nf4" or not state.nested or state.blocksize != 64:
            raise BaseModelError(f"{name} is not NF4 with double quantisation in blocks of 64")
    if not layers:
        raise BaseModelError("the base has no four-bit layers")
    return len(layers)


def exchange_four_bit_layers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """For layers of our kernels where those can be used, and else for 16-bit ones if there is room.

    What cannot be exchanged stays.
    """
    computable = {n: m for n, m in _four_bit_layers(model).items() if is_computable(m)}
    for name, layer in computable.items():
        model.set_submodule(name, FourBitLayer.of(layer))
    widen(model, dtype)


def widen(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Exchange all four-bit layers on the CPU, when memory allows it; whether it was done."""
    layers = _four_bit_layers(model)
    needed = sum(layer.in_features * layer.out_features for layer in layers.values())
    needed *= dtype.itemsize
    available = psutil.virtual_memory().available
    on_cpu = model.device.type == "cpu"
    if not on_cpu or not layers or needed > MAX_MEMORY_SHARE * available:
        return False
    for name, layer in layers.items():
        model.set_submodule(name, _widened(layer, dtype))
    logger.info("dequantised %d layers once, %d MB", len(layers), needed // 1_000_000)
    return True


def _four_bit_layers(model: nn.Module) -> dict[str, Linear4bit]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit)}


def _widened(layer: Linear4bit, dtype: torch.dtype) -> nn.Linear:
    weight = served_weight(layer, packed=is_packable(layer, dtype)).to(dtype)
    wide = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    wide.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        wide.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
    return wide
