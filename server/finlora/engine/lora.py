"""LoRA in a mixed batch: the slots that hold resident adapters and the layers that read them.

    y = W x + B (A x) gamma                     LoRA; gamma = alpha / r, rsLoRA: alpha / sqrt(r)
    y = g * (W x + B (A x) gamma)               DoRA; g = m / ||W + gamma B A|| per output row

gamma is folded into B at load. Rows of the batch are sorted by slot, so that an adapter's rows are
few contiguous segments; rows without an adapter belong to no segment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finlora.bases.spec import LinearShape

# Up to this many rows x ranks, all adapters are applied to all rows at once and the wrong ones are
# masked out: cheaper than a pair of small matmuls per adapter (loadtest/lora_paths.py).
MAX_CONCATENATED_PRODUCTS = 32_768


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
    """The slots of one linear layer."""

    def __init__(
        self, shape: LinearShape, max_loras: int, max_rank: int, dtype: torch.dtype, device: str
    ) -> None:
        # Memory is touched only where adapters are written: a small rank costs its own size.
        self._a = torch.empty(max_loras, max_rank, shape.in_features, dtype=dtype, device=device)
        self._b = torch.empty(max_loras, max_rank, shape.out_features, dtype=dtype, device=device)
        self._magnitudes: dict[int, Tensor] = {}
        self._ranks = [0] * max_loras
        self._concatenated: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    def write(self, slot: int, weights: LoRAWeights | None) -> None:
        """Put one adapter's layer into a slot; None: the adapter leaves this layer alone."""
        self._concatenated = None
        self._magnitudes.pop(slot, None)
        self._ranks[slot] = 0
        if weights is None:
            return
        rank = weights.a.shape[0]
        self._a[slot, :rank].copy_(weights.a, non_blocking=True)
        self._b[slot, :rank].copy_(weights.b, non_blocking=True)
        self._ranks[slot] = rank
        if weights.magnitude is not None:
            self._magnitudes[slot] = weights.magnitude.to(self._b.device, non_blocking=True)

    @property
    def num_bytes(self) -> int:
        """Bytes that hold adapters now."""
        per_rank = (self._a.shape[2] + self._b.shape[2]) * self._a.element_size()
        extra = sum(m.numel() * m.element_size() for m in self._magnitudes.values())
        return sum(self._ranks) * per_rank + extra

    def apply(self, x: Tensor, y: Tensor, bias: Tensor | None, batch: LoRABatch) -> None:
        """Add the adapters' part to y [T, out_features] in place; x is [T, in_features]."""
        ranks = tuple(self._ranks[slot] for slot in batch.slots)
        total = sum(ranks)
        if 0 < total * len(x) <= MAX_CONCATENATED_PRODUCTS:
            self._apply_concatenated(x, y, ranks, batch)
        elif total:
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
            pairs = list(zip(slots, ranks, strict=True))
            a = torch.cat([self._a[slot, :rank] for slot, rank in pairs])
            b = torch.cat([self._b[slot, :rank] for slot, rank in pairs])
            self._concatenated = (slots, a, b)
        return self._concatenated[1:]

    def _apply_segments(self, x: Tensor, y: Tensor, batch: LoRABatch) -> None:
        for segment in batch.segments:
            rank = self._ranks[segment.slot]
            if rank:
                rows = slice(segment.start, segment.stop)
                hidden = F.linear(x[rows], self._a[segment.slot, :rank])
                y[rows].addmm_(hidden, self._b[segment.slot, :rank])

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
        layers: Mapping[str, LinearShape],
        *,
        max_loras: int,
        max_rank: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.layers = {
            name: LoRALayerSlots(shape, max_loras, max_rank, dtype, device)
            for name, shape in layers.items()
        }
        self.batch: LoRABatch | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that hold adapters now (slots take memory only where they are filled)."""
        return sum(layer.num_bytes for layer in self.layers.values())

    def write(self, slot: int, weights: AdapterWeights) -> None:
        """Put an adapter into a slot, over whatever was there."""
        for name, layer in self.layers.items():
            layer.write(slot, weights.layers.get(name))


class LoRALinear(nn.Module):
    """A base layer and the slots that adapt it; owns the layer, borrows the slots."""

    def __init__(self, base: nn.Module, slots: LoRASlots, name: str) -> None:
        super().__init__()
        self.base = base
        self._slots = slots
        self._layer = slots.layers[name]

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


def wrap(model: nn.Module, slots: LoRASlots) -> None:
    """Put a LoRALinear around every layer that has slots."""
    for name in slots.layers:
        parent, _, attribute = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, attribute, LoRALinear(getattr(owner, attribute), slots, name))
