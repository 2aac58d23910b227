"""Slots of torch's tensors, into which adapters are copied; rows of a batch by batched products."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from finlora.engine.batch import NO_SLOT
from finlora.engine.lora_batch import LoRABatch, Stack
from finlora.engine.lora_weights import LoRAWeights
from finlora.engine.siblings import LayerGroup

# More is multiplied than needed as long as that costs at most so many products for each small
# matmul that it saves (loadtest/lora_paths.py). In 16 bits oneDNN has to prepare each of them.
MAX_PRODUCTS_PER_MATMUL = {
    torch.float32: 500_000,
    torch.bfloat16: 2_000_000,
    torch.float16: 2_000_000,
}


class StackedSlots:
    """The slots of one group of layers, on any device."""

    def __init__(
        self, group: LayerGroup, max_loras: int, max_rank: int, dtype: torch.dtype, device: str
    ) -> None:
        # Memory is touched only where adapters are written: a small rank costs its own size.
        max_width = len(group.names) * max_rank
        self._in_features, self._out_features = group.in_features, sum(group.out_features)
        self._a = torch.empty(max_loras, max_width, self._in_features, dtype=dtype, device=device)
        self._b = torch.empty(max_loras, max_width, self._out_features, dtype=dtype, device=device)
        self._columns = group.columns
        self._ranks: list[list[slice]] = [[]] * max_loras  # of each layer
        self._filled = [(self._a[slot, :0], self._b[slot, :0]) for slot in range(max_loras)]
        self._widths = [0] * max_loras  # ranks of all layers
        self._magnitudes: dict[int, Tensor] = {}  # DoRA's, of all layers in a row
        self._copied: tuple[tuple[int, ...], Tensor, Tensor] | None = None
        max_products = MAX_PRODUCTS_PER_MATMUL[dtype]
        # One more adapter in a stack saves two matmuls; all of B at once, one for each layer.
        self._max_cost = 2 * max_products // (self._in_features + self._out_features)
        self._max_whole = len(group.names) * max_products // self._out_features  # rows x ranks

    def write(self, slot: int, layers: Sequence[LoRAWeights | None]) -> None:
        """Put one adapter's layers into a slot; None: the adapter leaves that layer alone.

        The A matrices are stacked. B has each layer's part at its ranks and columns and is zero
        elsewhere, so that one product serves all layers.
        """
        self._copied = None
        ends = list(accumulate(0 if layer is None else len(layer.a) for layer in layers))
        self._widths[slot] = ends[-1]
        self._ranks[slot] = [slice(start, end) for start, end in pairwise([0, *ends])]
        a, b = self._filled[slot] = self._a[slot, : ends[-1]], self._b[slot, : ends[-1]]
        if len(layers) > 1:
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
        return numbers * self._a.element_size() + sum(m.nbytes for m in self._magnitudes.values())

    def apply(self, x: Tensor, y: Tensor, bias: Tensor | None, batch: LoRABatch) -> None:
        """Add the adapters' part to y [T, out_features] in place; x is [T, in_features]."""
        self._add(x, y, batch)
        if self._magnitudes:
            self._scale(y, bias, batch)

    def _scale(self, y: Tensor, bias: Tensor | None, batch: LoRABatch) -> None:
        rows_of_each = y.split([segment.num_rows for segment in batch.segments])
        for segment, rows in zip(batch.segments, rows_of_each, strict=True):
            magnitude = self._magnitudes.get(segment.slot)
            if magnitude is not None:
                rows.mul_(magnitude)
                if bias is not None:  # y holds the bias already; DoRA does not scale it
                    rows.add_(bias * (1 - magnitude))

    def _add(self, x: Tensor, y: Tensor, batch: LoRABatch) -> None:
        widths = [0 if s.slot == NO_SLOT else self._widths[s.slot] for s in batch.segments]
        plan = batch.plan(widths, self._max_cost)
        for run, own_x, own_y in zip(plan.runs, plan.parts(x), plan.parts(y), strict=True):
            if run.width and len(run.slots) == 1:
                self._add_one(own_x, own_y, run.slots[0])
            elif run.width:
                self._add_stacked(own_x, own_y, run.stack(x.device), run.width)

    def _add_stacked(self, x: Tensor, y: Tensor, stack: Stack, width: int) -> None:
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

    def _add_one(self, x: Tensor, y: Tensor, slot: int) -> None:
        a, b = self._filled[slot]
        hidden = F.linear(x, a)
        if len(x) * self._widths[slot] <= self._max_whole:
            y.addmm_(hidden, b)
            return
        for ranks, columns in zip(self._ranks[slot], self._columns, strict=True):
            if ranks.stop > ranks.start:
                y[:, columns].addmm_(hidden[:, ranks], b[ranks, columns])
