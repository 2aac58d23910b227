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
from finlora.engine.lora_weights import AdapterWeights, LoRAWeights
from finlora.engine.siblings import LayerGroup
from finlora.engine.stacked_slots import StackedSlots
from finlora.native.lora import SlotUpdates


class LoRALayerSlots:
    """The slots of one group of layers."""

    def __init__(
        self, group: LayerGroup, max_loras: int, max_rank: int, dtype: torch.dtype, device: str
    ) -> None:
        self._columns = group.columns
        self._dtype, self._device = dtype, device
        self._slots: BorrowedSlots | StackedSlots
        if can_borrow(group, max_rank, dtype, device):
            self._slots = BorrowedSlots(group, max_loras, dtype)
        else:
            self._slots = StackedSlots(group, max_loras, max_rank, dtype, device)
        self._magnitudes: dict[int, Tensor] = {}

    @property
    def updates(self) -> SlotUpdates | None:
        """What our own kernel reads, where it serves these slots."""
        return self._slots.updates if isinstance(self._slots, BorrowedSlots) else None

    def write(self, slot: int, layers: Sequence[LoRAWeights | None]) -> None:
        """Put one adapter's layers into a slot; None: the adapter leaves that layer alone."""
        self._slots.write(slot, layers)
        self._magnitudes.pop(slot, None)
        if any(layer is not None and layer.magnitude is not None for layer in layers):
            self._magnitudes[slot] = self._joined_magnitude(layers)

    def _joined_magnitude(self, layers: Sequence[LoRAWeights | None]) -> Tensor:
        width = self._columns[-1].stop
        magnitude = torch.ones(width, dtype=self._dtype, device=self._device)
        for layer, columns in zip(layers, self._columns, strict=True):
            if layer is not None and layer.magnitude is not None:
                magnitude[columns] = layer.magnitude
        return magnitude

    @property
    def num_bytes(self) -> int:
        """Bytes that slots hold of their own."""
        return self._slots.num_bytes + sum(m.nbytes for m in self._magnitudes.values())

    def apply(self, x: Tensor, y: Tensor, bias: Tensor | None, batch: LoRABatch) -> None:
        """Add the adapters' part to y [T, out_features] in place; x is [T, in_features]."""
        self._slots.add(x, y, batch)
        if self._magnitudes:
            self._apply_magnitudes(y, bias, batch)

    def _apply_magnitudes(self, y: Tensor, bias: Tensor | None, batch: LoRABatch) -> None:
        rows_of_each = y.split([segment.num_rows for segment in batch.segments])
        for segment, rows in zip(batch.segments, rows_of_each, strict=True):
            magnitude = self._magnitudes.get(segment.slot)
            if magnitude is not None:
                rows.mul_(magnitude)
                if bias is not None:  # y holds the bias already; DoRA does not scale it
                    rows.add_(bias * (1 - magnitude))


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
            group.names: LoRALayerSlots(group, max_loras, max_rank, dtype, device)
            for group in groups
        }
        self.batch: LoRABatch | None = None
        self._doras: set[int] = set()

    @property
    def has_dora(self) -> bool:
        """Whether the batch has an adapter that scales what layers give."""
        return self.batch is not None and not self._doras.isdisjoint(self.batch.slots)

    @property
    def num_bytes(self) -> int:
        """Bytes that slots hold of their own, beside what they borrow."""
        return sum(layer.num_bytes for layer in self.layers.values())

    @property
    def borrows(self) -> bool:
        """Whether any slot reads an adapter's weights where they lie in RAM."""
        return any(layer.updates is not None for layer in self.layers.values())

    def clear(self, slot: int) -> None:
        """Let go of the adapter in a slot."""
        self.write(slot, AdapterWeights({}))

    def write(self, slot: int, weights: AdapterWeights) -> None:
        """Put an adapter into a slot, in place of whatever was there."""
        for names, layer in self.layers.items():
            layer.write(slot, [weights.layers.get(name) for name in names])
        is_dora = any(layer.magnitude is not None for layer in weights.layers.values())
        (self._doras.add if is_dora else self._doras.discard)(slot)


class LoRALinear(nn.Module):
    """A base layer, or several joined, and the slots that adapt it; borrows the slots."""

    def __init__(self, base: nn.Module, slots: LoRASlots, group: LayerGroup) -> None:
        super().__init__()
        self.base = base
        self._slots = slots
        self.layer_slots: LoRALayerSlots = slots.layers[group.names]

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
