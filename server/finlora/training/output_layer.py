"""The output layer of a base that is trained on a CPU: as the engine's, with a way back."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finlora.engine.output_layer import HalfLinear, replace_output_layer
from finlora.native.four_bit import PANEL
from finlora.native.half import HalfPanels
from finlora.training.frozen import HalfWeight, frozen_product


class FrozenOutputLayer(nn.Module):
    """A layer without bias whose weight is kept in bfloat16; float32 in, float32 out."""

    def __init__(self, panels: HalfPanels, weight: Tensor) -> None:
        """`weight` stands for the real one where model code looks at its device."""
        super().__init__()
        self.frozen = HalfWeight(panels)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return frozen_product(x, self.frozen)


def replace_trained_output_layer(model: PreTrainedModel) -> None:
    """Keep the vocabulary's weights in bfloat16 where that changes no number."""
    if model.config.hidden_size % PANEL or model.dtype is not torch.float32:
        return
    replace_output_layer(model)
    layer: Any = model.get_output_embeddings()
    if isinstance(layer, HalfLinear) and isinstance(layer.panels, HalfPanels):
        model.set_output_embeddings(FrozenOutputLayer(layer.panels, layer.weight))
