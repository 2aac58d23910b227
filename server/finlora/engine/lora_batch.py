"""Which rows of a step use which adapter, and how the rows of many adapters become one product."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from finlora.engine.batch import NO_SLOT

# A range of slots is read where it lies while at least this share of it is of use to the step; of
# sparser slots a copy is made.
MIN_USED_SHARE = 0.5
# Rows are copied into a stack and out of it; a number costs about as much as so many products.
PRODUCTS_PER_COPY = 100


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows next to each other that use the adapter in `slot`, none where it is NO_SLOT."""

    slot: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Stack:
    """The rows of a run as a tensor [slots, rows of each, features], short segments padded."""

    slots: tuple[int, ...]  # ascending; some may be of no use
    rows_each: int
    rows: Tensor | None  # [slots * rows_each], which row of the run; None: they lie like this
    places: Tensor | None  # [rows of the run], where each is among those of the stack

    def of(self, x: Tensor) -> Tensor:
        """[rows of the run, features] -> [slots, rows_each, features]."""
        stacked = x if self.rows is None else x.index_select(0, self.rows)
        return stacked.view(len(self.slots), self.rows_each, -1)


@dataclass(slots=True)
class Run:
    """Neighbouring segments whose slots ascend and have equally many ranks."""

    width: int  # ranks; 0: nothing is to be done
    slots: list[int]
    lengths: list[int]  # rows of each segment
    _stack: Stack | None = None

    def takes(self, segment: Segment, width: int, max_cost: int) -> bool:
        """Whether the next segment is to be a part of the run."""
        if width != self.width or width == 0:
            return width == self.width
        longest, num_segments = max(self.lengths), len(self.lengths)
        grown = (num_segments + 1) * max(longest, segment.num_rows)
        cost = (grown - num_segments * longest) * (width + PRODUCTS_PER_COPY)
        return cost <= max_cost and self.slots[-1] < segment.slot

    def stack(self, device: torch.device) -> Stack:
        """The run's rows by slot; made once."""
        if self._stack is None:
            self._stack = self._make_stack(device)
        return self._stack

    def _make_stack(self, device: torch.device) -> Stack:
        ranged = range(self.slots[0], self.slots[-1] + 1)
        dense = len(self.slots) >= MIN_USED_SHARE * len(ranged)
        slots = tuple(ranged if dense else self.slots)
        lengths, row = np.array(self.lengths), np.arange(sum(self.lengths))
        rows_each = lengths.max()
        if len(slots) * rows_each == len(row):
            return Stack(slots, rows_each, None, None)
        first_places = np.searchsorted(slots, self.slots) * rows_each
        places = row + np.repeat(first_places - (lengths.cumsum() - lengths), lengths)
        rows = np.zeros(len(slots) * rows_each, np.int64)  # padding: any row, nobody reads it
        rows[places] = row
        at = [torch.from_numpy(index).to(device) for index in (rows, places)]
        return Stack(slots, rows_each, *at)


@dataclass(frozen=True, slots=True)
class Plan:
    """All rows of a step as runs."""

    runs: list[Run]
    sizes: list[int]  # rows of each run

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        """Views of each run's rows of x [T, features]."""
        return x.split(self.sizes) if len(self.sizes) > 1 else (x,)


@dataclass(slots=True)
class LoRABatch:
    """The adapters of one step, for all of its rows."""

    segments: tuple[Segment, ...]
    slots: frozenset[int] = field(init=False)
    _plans: dict[tuple[int, ...], Plan] = field(default_factory=dict)
    _described: Tensor | None = None

    def __post_init__(self) -> None:
        self.slots = frozenset(segment.slot for segment in self.segments)

    @property
    def described(self) -> Tensor:
        """[n, 3], int64: slot, first row and number of rows of each segment with an adapter."""
        if self._described is None:
            ends = accumulate(segment.num_rows for segment in self.segments)
            rows = [
                (segment.slot, end - segment.num_rows, segment.num_rows)
                for segment, end in zip(self.segments, ends, strict=True)
                if segment.slot != NO_SLOT
            ]
            self._described = torch.tensor(rows, dtype=torch.int64).view(-1, 3)
        return self._described

    def plan(self, widths: Sequence[int], max_cost: int) -> Plan:
        """The segments, joined into stacks as long as that pays.

        `widths` are the ranks that each segment's slot has in the layer that asks, 0 without one;
        `max_cost` is what one more segment may cost: products for each of the layer's features.
        """
        key = (max_cost, *widths)
        if key not in self._plans:
            runs = self._join(widths, max_cost)
            self._plans[key] = Plan(runs, [sum(run.lengths) for run in runs])
        return self._plans[key]

    def _join(self, widths: Sequence[int], max_cost: int) -> list[Run]:
        runs: list[Run] = []
        for segment, width in zip(self.segments, widths, strict=True):
            if not runs or not runs[-1].takes(segment, width, max_cost):
                runs.append(Run(width, [], []))
            runs[-1].slots.append(segment.slot)
            runs[-1].lengths.append(segment.num_rows)
        return runs
