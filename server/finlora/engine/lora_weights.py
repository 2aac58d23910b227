"""An adapter's weights as they lie in RAM, from where they go into slots or are read by slots."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoRAWeights:
    """One layer of one adapter, gamma folded into B; contiguous."""

    a: Tensor  # [r, in_features]
    b: Tensor  # [r, out_features], of A's type: what the base computes in, or a narrower one
    magnitude: Tensor | None = None  # DoRA's g: [out_features]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        magnitude_bytes = 0 if self.magnitude is None else self.magnitude.nbytes
        return self.a.nbytes + self.b.nbytes + magnitude_bytes


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """All layers of one adapter, by module name; A and B are of one type in all of them."""

    layers: Mapping[str, LoRAWeights]

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.num_bytes for layer in self.layers.values())
