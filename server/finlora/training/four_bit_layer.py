"""Four-bit layers of a base that is trained on a CPU with AVX2: computed by our own kernel, both
ways, from the codes themselves.

torch's float32 product of the same shapes is slower there, and its weights are eight times as
large.
"""

from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from finlora.engine.panel_linear import fits, max_rows, panels_of
from finlora.native.four_bit import PanelWeight
from finlora.training.frozen import FourBitWeight, frozen_product


class FourBitLayer(nn.Module):
    """y = W x + bias in float32; W and bias are frozen."""

    def __init__(self, panels: PanelWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = panels.in_features, panels.out_features
        self.weight = nn.Parameter(panels.codes, requires_grad=False)
        self.bias = bias
        self.frozen = FourBitWeight(panels, bias)

    @classmethod
    def of(cls, layer: Linear4bit) -> "FourBitLayer":
        """The same numbers."""
        return cls(panels_of(layer), None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return frozen_product(x, self.frozen)

    def wide(self) -> Tensor:
        """[out_features, in_features] in float32."""
        panels = self.frozen.panels
        return panels.transposed(slice(0, panels.num_panels)).T


def is_computable(layer: Linear4bit) -> bool:
    """Whether the kernel can take it and is the fastest way here, whatever the number of rows."""
    return max_rows() is None and fits(layer)
