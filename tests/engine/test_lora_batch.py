"""However rows are joined into runs and stacks, every row gets its own adapter and nothing else."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finlora.engine.batch import NO_SLOT
from finlora.engine.lora_batch import LoRABatch, Run, Segment
from finlora.engine.lora_weights import LoRAWeights
from finlora.engine.siblings import LayerGroup
from finlora.engine.stacked_slots import MAX_PRODUCTS_PER_MATMUL, StackedSlots

GROUP = LayerGroup(("q_proj", "k_proj"), 6, (5, 3))
# Ranks of both layers in each slot; 0: the adapter leaves the layer alone. The last is never used.
RANKS = ((2, 2), (2, 2), (3, 0), (2, 2), (0, 0), (1, 3), (2, 2), (4, 4))

segments = st.lists(
    st.builds(
        Segment,
        slot=st.sampled_from([NO_SLOT, *range(len(RANKS) - 1)]),
        num_rows=st.integers(1, 5),
    ),
    min_size=1,
    max_size=10,
)


def weights(slot: int) -> list[LoRAWeights | None]:
    generator = torch.Generator().manual_seed(slot)

    def matrix(rank: int, size: int) -> Tensor:
        return torch.randn(rank, size, generator=generator)

    pairs = zip(RANKS[slot], GROUP.out_features, strict=True)
    return [
        LoRAWeights(matrix(rank, GROUP.in_features), matrix(rank, size)) if rank else None
        for rank, size in pairs
    ]


def stacked_slots() -> StackedSlots:
    """All slots but the last are filled; what nobody filled holds no numbers."""
    slots = StackedSlots(GROUP, len(RANKS), 4, torch.float32, "cpu")
    slots._a.fill_(torch.nan)
    slots._b.fill_(torch.nan)
    for slot in range(len(RANKS) - 1):
        slots.write(slot, weights(slot))
    return slots


def expected(x: Tensor, y: Tensor, batch: Sequence[Segment]) -> Tensor:
    y = y.clone()
    start = 0
    for segment in batch:
        rows = slice(start, start + segment.num_rows)
        if segment.slot != NO_SLOT:
            for layer, columns in zip(weights(segment.slot), GROUP.columns, strict=True):
                if layer is not None:
                    y[rows, columns] += x[rows] @ layer.a.T @ layer.b
        start += segment.num_rows
    return y


@pytest.mark.parametrize("limit", [0, 2_000, 10**9])
@given(batch=segments)
def test_every_row_gets_its_own_adapter(limit: int, batch: list[Segment]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MAX_PRODUCTS_PER_MATMUL, torch.float32, limit)
        slots = stacked_slots()
    num_rows = sum(segment.num_rows for segment in batch)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, GROUP.in_features, generator=generator)
    y = torch.randn(num_rows, sum(GROUP.out_features), generator=generator)
    wanted = expected(x, y, batch)
    slots.apply(x, y, None, LoRABatch(tuple(batch)))
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)


def runs(batch: Sequence[tuple[int, int]], max_cost: int, width: int = 8) -> list[Run]:
    segments = [Segment(slot, num_rows) for slot, num_rows in batch]
    return LoRABatch(tuple(segments)).plan([width] * len(segments), max_cost).runs


def test_what_ascends_is_one_run_and_decode_and_prompt_rows_are_two() -> None:
    decode_then_prefill = [(0, 2), (1, 3), (3, 2), (0, 2), (2, 3)]
    assert [run.slots for run in runs(decode_then_prefill, 10**6)] == [[0, 1, 3], [0, 2]]


def test_a_long_segment_is_not_what_short_ones_are_padded_to() -> None:
    cost_of_a_row = 8 + 100
    short_and_long = [(0, 1), (1, 1), (2, 50), (3, 1)]
    found = [run.lengths for run in runs(short_and_long, 4 * cost_of_a_row)]
    assert found == [[1, 1], [50], [1]]


def test_slots_are_read_where_they_lie_unless_few_of_them_are_used() -> None:
    [dense], [sparse] = (runs([(0, 1), (last, 1)], 10**6) for last in (3, 4))
    device = torch.device("cpu")
    assert dense.stack(device).slots == (0, 1, 2, 3)
    assert sparse.stack(device).slots == (0, 4)


def test_an_even_batch_is_a_stack_as_it_lies() -> None:
    [run] = runs([(0, 2), (1, 2)], 10**6)
    x = torch.arange(8.0).view(4, 2)
    assert run.stack(x.device).of(x).data_ptr() == x.data_ptr()


def test_a_copy_of_sparse_slots_follows_what_is_written() -> None:
    slots = stacked_slots()
    slots._max_cost = 10**9
    batch = (Segment(0, 1), Segment(6, 1))
    x = torch.ones(2, GROUP.in_features)
    for slot in (0, 3):
        slots.write(6, weights(slot))
        y = torch.zeros(2, sum(GROUP.out_features))
        slots.apply(x, y, None, LoRABatch(batch))
        wanted = expected(x, torch.zeros_like(y), (Segment(0, 1), Segment(slot, 1)))
        torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)
