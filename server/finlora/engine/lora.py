"""LoRA in a mixed batch: the slots that hold resident adapters and the layers that read them.

    y = W x + B (A x) gamma                     LoRA; gamma = alpha / r, rsLoRA: alpha / sqrt(r)
    y = g * (W x + B (A x) gamma)               DoRA; g = m / ||W + gamma B A|| per output row

gamma is folded into B at load. Rows of the batch are sorted by slot, so that an adapter's rows are
few contiguous segments; rows without an adapter belong to no segment. Layers that read the same
input are adapted together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finlora.engine.batch import NO_SLOT
from finlora.engine.lora_batch import LoRABatch, Stack
from finlora.engine.siblings import LayerGroup
from finlora.native import library
from finlora.native import lora as native_lora
from finlora.native.lora import SlotUpdates

# More is multiplied than needed as long as that costs at most so many products for each small
# matmul that it saves (loadtest/lora_paths.py). In 16 bits oneDNN has to prepare each of them.
MAX_PRODUCTS_PER_MATMUL = {
    torch.float32: 500_000,
    torch.bfloat16: 2_000_000,
    torch.float16: 2_000_000,
}


@dataclass(frozen=True, slots=True)
class LoRAWeights:
    """One layer of one adapter, ready for a slot: compute dtype, gamma folded into B."""

    a: Tensor  # [r, in_features]
    b: Tensor  # [r, out_features]
    magnitude: Tensor | None = None  # DoRA's g: [out_features]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [self.a, self.b] if self.magnitude is None else [self.a, self.b, self.magnitude]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """All layers of one adapter, by module name."""

    layers: Mapping[str, LoRAWeights]

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.num_bytes for layer in self.layers.values())


class LoRALayerSlots:
    """The slots of one group of layers."""

    def __init__(
        self, group: LayerGroup, max_loras: int, max_rank: int, dtype: torch.dtype, device: str
    ) -> None:
        # Memory is touched only where adapters are written: a small rank costs its own size.
        max_width = len(group.names) * max_rank
        self._in_features, self._out_features = group.in_features, sum(group.out_features)
        self._a = torch.empty(max_loras, max_width, self._in_features, dtype=dtype, device=device)
        self._b = torch.empty(max_loras, max_width, self._out_features, dtype=dtype, device=device)
        self._columns = group.columns
        self._magnitudes: dict[int, Tensor] = {}
        self._ranks: list[list[slice]] = [[]] * max_loras  # of each layer
        self._filled = [(self._a[slot, :0], self._b[slot, :0]) for slot in range(max_loras)]
        self._widths = [0] * max_loras  # ranks of all layers
        self._copied: tuple[tuple[int, ...], Tensor, Tensor] | None = None
        max_products = MAX_PRODUCTS_PER_MATMUL[dtype]
        # One more adapter in a stack saves two matmuls; all of B at once, one for each layer.
        self._max_cost = 2 * max_products // (self._in_features + self._out_features)
        self._max_whole = len(group.names) * max_products // self._out_features  # rows x ranks
        self.updates: SlotUpdates | None = None  # by our own kernel, where it fits
        if _is_native(group, max_width, self._a):
            self.updates = SlotUpdates(self._a, self._b, group.out_features)

    def write(self, slot: int, layers: Sequence[LoRAWeights | None]) -> None:
        """Put one adapter's layers into a slot; None: the adapter leaves that layer alone.

        The A matrices are stacked, B has each layer's part at its ranks and columns. Elsewhere B is
        zero for torch's products, which serve all layers at once; our kernel reads nothing there.
        """
        self._copied = None
        ends = list(accumulate(0 if layer is None else len(layer.a) for layer in layers))
        self._widths[slot] = ends[-1]
        self._ranks[slot] = [slice(start, end) for start, end in pairwise([0, *ends])]
        a, b = self._filled[slot] = self._a[slot, : ends[-1]], self._b[slot, : ends[-1]]
        if self.updates is not None:
            self.updates.set_ranks(slot, ends)
        elif len(layers) > 1:
            b.zero_()
        for layer, ranks, columns in zip(layers, self._ranks[slot], self._columns, strict=True):
            if layer is not None:
                a[ranks].copy_(layer.a, non_blocking=True)
                b[ranks, columns].copy_(layer.b, non_blocking=True)
        self._write_magnitude(slot, layers)

    def _write_magnitude(self, slot: int, layers: Sequence[LoRAWeights | None]) -> None:
        self._magnitudes.pop(slot, None)
        if all(layer is None or layer.magnitude is None for layer in layers):
            return
        magnitude = self._b.new_ones(self._out_features)
        for layer, columns in zip(layers, self._columns, strict=True):
            if layer is not None and layer.magnitude is not None:
                magnitude[columns] = layer.magnitude
        self._magnitudes[slot] = magnitude

    @property
    def num_bytes(self) -> int:
        """Bytes that hold adapters now."""
        numbers = sum(self._widths) * (self._in_features + self._out_features)
        extra = sum(m.numel() * m.element_size() for m in self._magnitudes.values())
        return numbers * self._a.element_size() + extra

    def apply(self, x: Tensor, y: Tensor, bias: Tensor | None, batch: LoRABatch) -> None:
        """Add the adapters' part to y [T, out_features] in place; x is [T, in_features]."""
        if self.updates is not None:
            self.updates.add(x, y, batch.described)
        else:
            self._apply_runs(x, y, batch)
        if self._magnitudes:
            self._apply_magnitudes(y, bias, batch)

    def _apply_runs(self, x: Tensor, y: Tensor, batch: LoRABatch) -> None:
        """With torch's operations, on any device."""
        widths = [0 if s.slot == NO_SLOT else self._widths[s.slot] for s in batch.segments]
        plan = batch.plan(widths, self._max_cost)
        for run, own_x, own_y in zip(plan.runs, plan.parts(x), plan.parts(y), strict=True):
            if run.width and len(run.slots) == 1:
                self._apply_one(own_x, own_y, run.slots[0])
            elif run.width:
                self._apply_stacked(own_x, own_y, run.stack(x.device), run.width)

    def _apply_stacked(self, x: Tensor, y: Tensor, stack: Stack, width: int) -> None:
        """Many adapters in two products of a matrix for each slot."""
        a, b = self._weights(stack.slots, width)
        hidden, stacked = torch.bmm(stack.of(x), a), stack.of(y)
        # Onto y and not beside it: rounded once, as a matmul for one adapter alone rounds.
        stacked.baddbmm_(hidden, b)
        if stack.places is not None:
            torch.index_select(stacked.flatten(0, 1), 0, stack.places, out=y)

    def _weights(self, slots: tuple[int, ...], width: int) -> tuple[Tensor, Tensor]:
        """A [slots, in_features, width] and B [slots, width, out_features]."""
        if slots[-1] - slots[0] + 1 == len(slots):
            taken = slice(slots[0], slots[-1] + 1)
            return self._a[taken, :width].transpose(1, 2), self._b[taken, :width]
        # Batches of the same adapters follow each other: the copy is kept until a slot changes.
        if self._copied is None or self._copied[0] != slots:
            index = list(slots)
            self._copied = (slots, self._a[index, :width].transpose(1, 2), self._b[index, :width])
        return self._copied[1:]

    def _apply_one(self, x: Tensor, y: Tensor, slot: int) -> None:
        a, b = self._filled[slot]
        hidden = F.linear(x, a)
        if len(x) * self._widths[slot] <= self._max_whole:
            y.addmm_(hidden, b)
            return
        for ranks, columns in zip(self._ranks[slot], self._columns, strict=True):
            if ranks.stop > ranks.start:
                y[:, columns].addmm_(hidden[:, ranks], b[ranks, columns])

    def _apply_magnitudes(self, y: Tensor, bias: Tensor | None, batch: LoRABatch) -> None:
        rows_of_each = y.split([segment.num_rows for segment in batch.segments])
        for segment, rows in zip(batch.segments, rows_of_each, strict=True):
            magnitude = self._magnitudes.get(segment.slot)
            if magnitude is not None:
                rows.mul_(magnitude)
                if bias is not None:  # y holds the bias already; DoRA does not scale it
                    rows.add_(bias * (1 - magnitude))


def _is_native(group: LayerGroup, max_ranks: int, slots: Tensor) -> bool:
    """Whether our own kernel adds the updates of such slots here."""
    return (
        slots.device.type == "cpu"
        and native_lora.fits(group.in_features, group.out_features, max_ranks, slots.dtype)
        and library.obstacle() is None
    )


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
        """Bytes that hold adapters now (slots take memory only where they are filled)."""
        return sum(layer.num_bytes for layer in self.layers.values())

    def write(self, slot: int, weights: AdapterWeights) -> None:
        """Put an adapter into a slot, over whatever was there."""
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
