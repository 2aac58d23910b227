"""The compiled updates of mixed adapters against the formula in float64."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finlora.native.lora import SlotUpdates, fits
from tests.native.kernels import needs_kernels, threads

pytestmark = needs_kernels

FLOAT, HALF = torch.float32, torch.bfloat16
NUM_SLOTS = 4


class Layer(NamedTuple):
    a: Tensor
    b: Tensor
    magnitude: Tensor | None = None


class Slots:
    """Random adapters of some layers."""

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        ranks: Sequence[Sequence[int]],
        dtype: torch.dtype = FLOAT,
        weights: torch.dtype | None = None,
        doras: bool = False,
    ) -> None:
        """`ranks` of each layer, by slot; the rows' type, and the weights' where it is another."""
        self.out_features = out_features
        self.layers = [
            [
                Layer(
                    rows(rank, in_features, weights or dtype),
                    rows(rank, width, weights or dtype),
                    rows(1, width, dtype)[0].abs() if doras else None,
                )
                if rank
                else None
                for rank, width in zip(own, out_features, strict=True)
            ]
            for own in ranks
        ]
        self.updates = SlotUpdates(NUM_SLOTS, in_features, out_features, dtype)
        for slot, layers in enumerate(self.layers):
            self.updates.put(slot, layers)

    def expected(
        self,
        x: Tensor,
        y: Tensor,
        segments: Sequence[Sequence[int]],
        bias: Tensor | None = None,
    ) -> Tensor:
        out = y.double()
        for slot, row, count in segments:
            part = x[row : row + count].double()
            sums = out[row : row + count].split(list(self.out_features), 1)
            biases = torch.zeros(y.shape[1]) if bias is None else bias
            parts = biases.double().split(list(self.out_features))
            for layer, own, own_bias in zip(self.layers[slot], sums, parts, strict=True):
                if layer is not None:
                    own += part @ layer.a.double().T @ layer.b.double()
                if layer is not None and layer.magnitude is not None:
                    own.copy_(layer.magnitude.double() * (own - own_bias) + own_bias)
        return out


def rows(num_rows: int, features: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.randn(num_rows, features).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    in_features=st.sampled_from([8, 64, 200]),
    out_features=st.lists(st.sampled_from([8, 24, 64]), min_size=1, max_size=3),
    own_ranks=st.lists(
        st.lists(st.integers(0, 13), min_size=3, max_size=3), min_size=NUM_SLOTS, max_size=NUM_SLOTS
    ),
    segments=st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 37)), max_size=6),
    weights=st.sampled_from([FLOAT, HALF]),
    num_threads=st.integers(1, 2),
)
def test_any_batch(
    in_features: int,
    out_features: list[int],
    own_ranks: list[list[int]],
    segments: list[tuple[int, int]],
    weights: torch.dtype,
    num_threads: int,
) -> None:
    ranks = [own[: len(out_features)] for own in own_ranks]
    slots = Slots(in_features, out_features, ranks, weights=weights)
    ends = list(accumulate(count for _, count in segments))
    described = [
        (slot, end - count, count)
        for (slot, count), end in zip(segments, ends, strict=True)
        if slot >= 0
    ]
    num_rows = sum(count for _, count in segments)
    x, y = rows(num_rows, in_features), rows(num_rows, sum(out_features))
    expected = slots.expected(x, y, described)
    with threads(num_threads):
        slots.updates.add(x, y, None, torch.tensor(described, dtype=torch.int64).view(-1, 3))
    torch.testing.assert_close(y.double(), expected, atol=1e-3, rtol=1e-4)


def test_many_rows_are_shared_out_to_threads() -> None:
    slots = Slots(200, [64, 24], [[8, 8]] * NUM_SLOTS)
    segments = [(0, 0, 301), (2, 301, 99)]
    x, y = rows(400, 200), rows(400, 88)
    expected = slots.expected(x, y, segments)
    slots.updates.add(x, y, None, torch.tensor(segments))
    torch.testing.assert_close(y.double(), expected, atol=1e-3, rtol=1e-4)


def test_half_precision_rounds_the_result_alone() -> None:
    slots = Slots(64, [24, 16], [[8, 3]] * NUM_SLOTS, HALF)
    segments = [(1, 0, 9), (3, 9, 2)]
    x, y = rows(11, 64, HALF), rows(11, 40, HALF)
    expected = slots.expected(x, y, segments)
    slots.updates.add(x, y, None, torch.tensor(segments))
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-3)


def test_weights_in_half_precision_give_the_bits_of_the_same_numbers_in_single() -> None:
    slots = Slots(64, [24, 16], [[8, 3]] * NUM_SLOTS, weights=HALF)
    segments = torch.tensor([(1, 0, 9), (3, 9, 2)])
    x, narrow = rows(11, 64), torch.zeros(11, 40)
    slots.updates.add(x, narrow, None, segments)
    for slot, layers in enumerate(slots.layers):
        slots.updates.put(slot, [Layer(x.a.float(), x.b.float()) for x in layers if x])
    wide = torch.zeros(11, 40)
    slots.updates.add(x, wide, None, segments)
    assert torch.equal(narrow, wide)


def test_a_slot_keeps_the_last_adapter_that_was_put_there() -> None:
    slots = Slots(64, [8, 16], [[2, 2]] * NUM_SLOTS)
    other = Layer(rows(5, 64), rows(5, 16))
    slots.layers[2] = [None, other]
    slots.updates.put(2, [None, Layer(other.a.clone(), other.b.clone())])  # nobody else holds these
    x, y = rows(3, 64), rows(3, 24)
    expected = slots.expected(x, y, [(2, 0, 3)])
    slots.updates.add(x, y, None, torch.tensor([(2, 0, 3)]))
    torch.testing.assert_close(y.double(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT, HALF])
def test_dora_scales_everything_but_the_bias(dtype: torch.dtype, has_bias: bool) -> None:
    slots = Slots(64, [24, 16], [[8, 0], [0, 3], [2, 2], [0, 0]], dtype, doras=True)
    segments = [(0, 0, 9), (1, 9, 2), (2, 12, 7), (3, 19, 2)]
    x, y = rows(21, 64, dtype), rows(21, 40, dtype)
    bias = rows(1, 40, dtype)[0] if has_bias else None
    expected = slots.expected(x, y, segments, bias)
    slots.updates.add(x, y, bias, torch.tensor(segments))
    rtol, atol = (1e-4, 1e-3) if dtype is FLOAT else (2**-7, 1e-2)
    torch.testing.assert_close(y.double(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
def test_a_row_has_the_same_bits_whatever_other_rows_there_are(dtype: torch.dtype) -> None:
    slots = Slots(64, [24, 16], [[8, 3], [1, 0], [13, 2], [0, 0]], dtype)
    segments = [(0, 0, 21), (2, 21, 18), (1, 39, 3), (3, 42, 2)]
    x, y = rows(44, 64, dtype), rows(44, 40, dtype)
    before = y.clone()
    slots.updates.add(x, y, None, torch.tensor(segments))
    for slot, first, count in segments:
        for row in range(first, first + count):
            alone = before[row : row + 1].clone()
            slots.updates.add(x[row : row + 1], alone, None, torch.tensor([(slot, 0, 1)]))
            assert torch.equal(alone[0], y[row])


@pytest.mark.parametrize(
    ("in_features", "out_features", "ranks", "dtype", "fitting"),
    [
        (576, [576, 192, 192], 192, FLOAT, True),
        (576, [1536, 1536], 1024, HALF, True),
        (576, [1536, 1536], 1025, FLOAT, False),
        (570, [64], 8, FLOAT, False),
        (64, [64, 12], 8, FLOAT, False),
        (64, [64, 32776], 8, FLOAT, False),
        (64, [64], 8, torch.float16, False),
    ],
)
def test_what_fits(
    in_features: int, out_features: list[int], ranks: int, dtype: torch.dtype, fitting: bool
) -> None:
    assert fits(in_features, out_features, ranks, dtype) is fitting
