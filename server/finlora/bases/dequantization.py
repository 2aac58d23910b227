"""The numbers of a four-bit layer as it is served; needs the layer before it is packed."""

from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise
from bitsandbytes.nn.modules import Linear4bit


def served_weight(layer: Linear4bit, *, packed: bool) -> torch.Tensor:
    """[out_features, in_features] in float32: what the serving kernel multiplies with.

    The packed CPU kernel keeps the block scales and the sixteen code values in bfloat16 and
    multiplies them exactly, so its weights differ by up to 0.4 % from the unpacked ones.
    """
    weight: Any = layer.weight
    state: QuantState = weight.quant_state
    if not packed:
        plain: torch.Tensor = dequantize_4bit(weight.data, state)
        return plain.float()
    values = state.code.to(torch.bfloat16).float()[_codes(weight.data)]
    scales = block_scales(state).to(torch.bfloat16).float()
    served: torch.Tensor = values.view(-1, state.blocksize) * scales.view(-1, 1)
    return served.view(*state.shape)


def block_scales(state: QuantState) -> torch.Tensor:
    """The factor of every block of weights, in float32, without double quantisation."""
    if not state.nested:
        plain: torch.Tensor = state.absmax.float()
        return plain
    scales: torch.Tensor = dequantize_blockwise(state.absmax, state.state2) + state.offset
    return scales.float()


def rows_as_stored(layer: Linear4bit) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [out_features, in_features / 2], two in a byte, and scales [out_features, blocks].

    The codes share the layer's memory. No block may cross the border of two rows.
    """
    weight: Any = layer.weight
    codes = weight.data.view(torch.uint8).view(layer.out_features, -1)
    return codes, block_scales(weight.quant_state).view(layer.out_features, -1)


def _codes(stored: torch.Tensor) -> torch.Tensor:
    """Two four-bit codes a byte, the first in the high half."""
    stored = stored.view(torch.uint8).view(-1)
    return torch.stack((stored >> 4, stored & 15), dim=1).view(-1).long()
