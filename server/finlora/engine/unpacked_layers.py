"""Chooses how four-bit layers are computed on a CPU, but for those that bitsandbytes is to pack."""

from collections.abc import Iterator
from typing import Any, TypeGuard

from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from finlora.engine import paired_linear, panel_linear, unpacked_linear
from finlora.engine.paired_linear import PairedLinear
from finlora.engine.panel_linear import PanelLinear
from finlora.engine.unpacked_linear import UnpackedLinear
from finlora.engine.wide import StepRows
from finlora.model import stored_scales

OwnLinear = PairedLinear | PanelLinear | UnpackedLinear


def replace_unpacked_layers(model: nn.Module) -> int:
    """Put the faster layer that fits in place of every unpacked one; bytes that scales add."""
    num_bytes = 0
    for name, layer in [(n, m) for n, m in model.named_modules() if _is_unpacked(m)]:
        if paired_linear.fits(layer):
            replacement: OwnLinear = PairedLinear.of(layer)
        elif layer.support_avx512bf16_for_cpu:
            continue
        elif panel_linear.fits(layer):
            replacement = PanelLinear.of(layer)
        elif unpacked_linear.fits(layer):
            replacement = UnpackedLinear.of(layer)
        else:
            continue
        model.set_submodule(name, replacement)
        num_bytes += replacement.scales.nbytes - sum(s.nbytes for s in stored_scales(layer))
    return num_bytes


def unpacked_layers(model: nn.Module) -> Iterator[OwnLinear]:
    """Every layer that was put in place."""
    return (m for m in model.modules() if isinstance(m, OwnLinear))


def widen(model: nn.Module, rows: StepRows) -> int:
    """Let each of them keep a copy of its weights where that is faster; bytes of the copies."""
    return sum(
        layer.widen(rows) if isinstance(layer, PairedLinear) else layer.widen()
        for layer in unpacked_layers(model)
    )


def _is_unpacked(module: nn.Module) -> TypeGuard[Linear4bit]:
    if not isinstance(module, Linear4bit) or module.weight.device.type != "cpu":
        return False
    weight: Any = module.weight
    return not getattr(weight.quant_state, "packing_format_for_cpu", False)
