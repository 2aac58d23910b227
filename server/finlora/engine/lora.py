"""LoRA in a mixed batch: the slots that hold resident adapters and the layers that read them.

    y = W x + B (A x) gamma                     LoRA; gamma = alpha / r, rsLoRA: alpha / sqrt(r)
    y = g * (W x + B (A x) gamma)               DoRA; g = m / ||W + gamma B A|| per output row

gamma is folded into B at load. Rows of the batch are sorted by slot, so that an adapter's rows are
few contiguous segments; rows without an adapter belong to no segment. Layers that read the same
input are adapted together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finlora.engine.siblings import LayerGroup

# All adapters are applied to all rows at once, and the wrong ones masked out, as long as that costs
# at most this many multiplications for each small matmul it saves (loadtest/lora_paths.py).
MAX_PRODUCTS_PER_MATMUL = 5_000_000


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


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, stop) of the batch use the adapter in `slot`."""

    slot: int
    start: int
    stop: int


@dataclass(slots=True)
class LoRABatch:
    """Which rows of this step use which slot."""

    segments: tuple[Segment, ...]
    slots: tuple[int, ...]  # distinct, ascending
    num_rows: int
    _masks: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def of_segments(cls, segments: list[Segment], num_rows: int) -> "LoRABatch | None":
        """The batch's adapters, or None when no row uses one."""
        if not segments:
            return None
        slots = tuple(sorted({segment.slot for segment in segments}))
        return cls(tuple(segments), slots, num_rows)

    def foreign(self, ranks: tuple[int, ...], device: torch.device) -> Tensor:
        """Mask [num_rows, sum(ranks)]: True where a rank belongs to another row's adapter."""
        if ranks not in self._masks:
            mask = torch.ones(self.num_rows, sum(ranks), dtype=torch.bool, device=device)
            ends = torch.tensor(ranks).cumsum(0).tolist()
            columns = {
                slot: slice(end - rank, end)
                for slot, rank, end in zip(self.slots, ranks, ends, strict=True)
            }
            for segment in self.segments:
                mask[segment.start : segment.stop, columns[segment.slot]] = False
            self._masks[ranks] = mask
        return self._masks[ranks]


class LoRALayerSlots:
    """The slots of one group of layers."""

    def __init__(
        self, group: LayerGroup, max_loras: int, max_rank: int, dtype: torch.dtype, device: str
    ) -> None:
        # Memory is touched only where adapters are written: a small rank costs its own size.
        max_hidden = len(group.names) * max_rank
        out_features = sum(group.out_features)
        self._a = torch.empty(max_loras, max_hidden, group.in_features, dtype=dtype, device=device)
        self._b = torch.empty(max_loras, max_rank, out_features, dtype=dtype, device=device)
        self._columns = group.columns
        self._magnitudes: dict[int, Tensor] = {}
        self._ranks: list[tuple[int, ...]] = [()] * max_loras  # of each layer
        self._concatenated: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    def write(self, slot: int, layers: Sequence[LoRAWeights | None]) -> None:
        """Put one adapter's layers into a slot; None: the adapter leaves that layer alone."""
        self._concatenated = None
        self._ranks[slot] = tuple(0 if layer is None else len(layer.a) for layer in layers)
        for layer, hidden, columns in zip(layers, self._hidden(slot), self._columns, strict=True):
            if layer is not None:
                self._a[slot, hidden].copy_(layer.a, non_blocking=True)
                self._b[slot, : len(layer.b), columns].copy_(layer.b, non_blocking=True)
        self._write_magnitude(slot, layers)

    def _write_magnitude(self, slot: int, layers: Sequence[LoRAWeights | None]) -> None:
        self._magnitudes.pop(slot, None)
        if all(layer is None or layer.magnitude is None for layer in layers):
            return
        magnitude = self._b.new_ones(self._b.shape[2])
        for layer, columns in zip(layers, self._columns, strict=True):
            if layer is not None and layer.magnitude is not None:
                magnitude[columns] = layer.magnitude
        self._magnitudes[slot] = magnitude

    def _hidden(self, slot: int) -> list[slice]:
        """Where each layer's ranks lie among those of all: the A matrices are stacked."""
        ranks = self._ranks[slot]
        ends = [sum(ranks[: i + 1]) for i in range(len(ranks))]
        return [slice(end - rank, end) for end, rank in zip(ends, ranks, strict=True)]

    @property
    def num_bytes(self) -> int:
        """Bytes that hold adapters now."""
        per_rank = [self._a.shape[2] + c.stop - c.start for c in self._columns]
        numbers: int = sum(
            rank * size
            for ranks in self._ranks
            for rank, size in zip(ranks, per_rank, strict=False)  # an empty slot has no ranks
        )
        extra = sum(m.numel() * m.element_size() for m in self._magnitudes.values())
        return numbers * self._a.element_size() + extra

    def apply(self, x: Tensor, y: Tensor, bias: Tensor | None, batch: LoRABatch) -> None:
        """Add the adapters' part to y [T, out_features] in place; x is [T, in_features]."""
        ranks = tuple(sum(self._ranks[slot]) for slot in batch.slots)
        products = len(x) * sum(ranks) * (x.shape[1] + y.shape[1])
        num_matmuls = len(batch.segments) * (1 + len(self._columns))
        if 0 < products <= MAX_PRODUCTS_PER_MATMUL * num_matmuls:
            self._apply_concatenated(x, y, ranks, batch)
        elif products:
            self._apply_segments(x, y, batch)
        if self._magnitudes:
            self._apply_magnitudes(y, bias, batch)

    def _apply_concatenated(
        self, x: Tensor, y: Tensor, ranks: tuple[int, ...], batch: LoRABatch
    ) -> None:
        a, b = self._concatenate(batch.slots, ranks)
        hidden = F.linear(x, a)
        if len(batch.segments) > 1 or batch.segments[0].stop - batch.segments[0].start < len(x):
            hidden.masked_fill_(batch.foreign(ranks, x.device), 0)
        y.addmm_(hidden, b)

    def _concatenate(self, slots: tuple[int, ...], ranks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        # Batches of the same adapters follow each other: the copy is kept until a slot changes.
        if self._concatenated is None or self._concatenated[0] != slots:
            a = torch.cat([self._a[slot, :rank] for slot, rank in zip(slots, ranks, strict=True)])
            b = torch.cat([self._spread(slot) for slot in slots])
            self._concatenated = (slots, a, b)
        return self._concatenated[1:]

    def _spread(self, slot: int) -> Tensor:
        """B of all layers [sum of ranks, out_features], zero where rank and column do not meet."""
        b = self._b.new_zeros(sum(self._ranks[slot]), self._b.shape[2])
        for hidden, columns in zip(self._hidden(slot), self._columns, strict=False):
            b[hidden, columns] = self._b[slot, : hidden.stop - hidden.start, columns]
        return b

    def _apply_segments(self, x: Tensor, y: Tensor, batch: LoRABatch) -> None:
        for segment in batch.segments:
            slot, rows = segment.slot, slice(segment.start, segment.stop)
            total = sum(self._ranks[slot])
            if not total:
                continue
            hidden = F.linear(x[rows], self._a[slot, :total])
            for ranks, columns in zip(self._hidden(slot), self._columns, strict=True):
                rank = ranks.stop - ranks.start
                if rank:
                    y[rows, columns].addmm_(hidden[:, ranks], self._b[slot, :rank, columns])

    def _apply_magnitudes(self, y: Tensor, bias: Tensor | None, batch: LoRABatch) -> None:
        for segment in batch.segments:
            magnitude = self._magnitudes.get(segment.slot)
            if magnitude is not None:
                rows = y[segment.start : segment.stop]
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

    @property
    def num_bytes(self) -> int:
        """Bytes that hold adapters now (slots take memory only where they are filled)."""
        return sum(layer.num_bytes for layer in self.layers.values())

    def write(self, slot: int, weights: AdapterWeights) -> None:
        """Put an adapter into a slot, over whatever was there."""
        for names, layer in self.layers.items():
            layer.write(slot, [weights.layers.get(name) for name in names])


class LoRALinear(nn.Module):
    """A base layer, or several joined, and the slots that adapt it; borrows the slots."""

    def __init__(self, base: nn.Module, slots: LoRASlots, group: LayerGroup) -> None:
        super().__init__()
        self.base = base
        self._slots = slots
        self._layer = slots.layers[group.names]

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
            self._layer.apply(x.flatten(0, -2), y.flatten(0, -2), self.bias, batch)
        return y
