"""LoRA in a mixed batch: the slots that hold resident adapters and the layers that read them.

    y = W x + B (A x) gamma                     LoRA; gamma = alpha / r, rsLoRA: alpha / sqrt(r)
    y = g * (W x + B (A x) gamma)               DoRA; g = m / ||W + gamma B A|| per output row

gamma is folded into B at load. Rows of the batch are sorted by slot, so that an adapter's rows are
few contiguous segments; rows without an adapter belong to no segment. Layers that read the same
input are adapted together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finlora.engine.borrowed_slots import BorrowedSlots, can_borrow
from finlora.engine.lora_batch import LoRABatch
from finlora.engine.lora_weights import AdapterWeights
from finlora.engine.siblings import LayerGroup
from finlora.engine.stacked_slots import StackedSlots

LayerSlots = BorrowedSlots | StackedSlots


def layer_slots(
    group: LayerGroup, max_loras: int, max_rank: int, dtype: torch.dtype, device: str
) -> LayerSlots:
    """The slots of one group of layers, of the kind that is right here."""
    if can_borrow(group, max_rank, dtype, device):
        return BorrowedSlots(group, max_loras, dtype)
    return StackedSlots(group, max_loras, max_rank, dtype, device)


class LoRASlots:
    """All slots of all layers, and the batch that the layers are to serve now."""

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        *,
        max_loras: int,
        max_rank: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.layers = {
            group.names: layer_slots(group, max_loras, max_rank, dtype, device) for group in groups
        }
        self.batch: LoRABatch | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that slots hold of their own, beside what they borrow."""
        return sum(layer.num_bytes for layer in self.layers.values())

    @property
    def borrows(self) -> bool:
        """Whether any slot reads an adapter's weights where they lie in RAM."""
        return any(isinstance(layer, BorrowedSlots) for layer in self.layers.values())

    def clear(self, slot: int) -> None:
        """Let go of the adapter in a slot."""
        self.write(slot, AdapterWeights({}))

    def write(self, slot: int, weights: AdapterWeights) -> None:
        """Put an adapter into a slot, in place of whatever was there."""
        for names, layer in self.layers.items():
            layer.write(slot, [weights.layers.get(name) for name in names])


class LoRALinear(nn.Module):
    """A base layer, or several joined, and the slots that adapt it; borrows the slots."""

    def __init__(self, base: nn.Module, slots: LoRASlots, group: LayerGroup) -> None:
        super().__init__()
        self.base = base
        self._slots = slots
        self.layer_slots: LayerSlots = slots.layers[group.names]

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, for model code that looks at its dtype or device."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        y: Tensor = self.base(x)
        batch = self._slots.batch
        if batch is not None:
            self.layer_slots.apply(x.flatten(0, -2), y.flatten(0, -2), self.bias, batch)
        return y
