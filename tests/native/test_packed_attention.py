"""The compiled attention of packed rows, and its gradients, against the formula in float64."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finlora.native import packed_attention
from finlora.native.packed_attention import Rows, make_plan
from tests.native.kernels import needs_kernels, threads

FLOAT, HALF = torch.float32, torch.bfloat16
SCALING = 0.3


class Inputs(NamedTuple):
    """What attention reads, and the gradient of its result."""

    query: Tensor  # [T, heads, size]
    key: Tensor  # [T, kv heads, size]
    value: Tensor
    dout: Tensor


class Results(NamedTuple):
    """[T, ...], as the inputs."""

    out: Tensor
    dquery: Tensor
    dkey: Tensor
    dvalue: Tensor


def make_rows(num_shared: int, *lengths: int, window: int | None = None) -> Rows:
    return Rows(num_shared, lengths, window, SCALING)


def make_inputs(
    rows: Rows, heads: tuple[int, int] = (4, 2), size: int = 16, dtype: torch.dtype = FLOAT
) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    num_tokens = rows.num_shared + sum(rows.lengths)
    num_heads, num_kv_heads = heads
    return Inputs(
        *(
            torch.randn(num_tokens, n, size, generator=generator).to(dtype)
            for n in (num_heads, num_kv_heads, num_kv_heads, num_heads)
        )
    )


def visible(rows: Rows) -> Tensor:
    """[T, T]: which key a query sees."""
    num_tokens = rows.num_shared + sum(rows.lengths)
    seen = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    shared, begin = torch.arange(rows.num_shared), rows.num_shared
    for own in (0, *rows.lengths):
        row = torch.cat((shared, torch.arange(begin, begin + own)))
        distance = torch.arange(len(row))[:, None] - torch.arange(len(row))
        is_near = distance < (rows.window or len(row))
        seen[row[:, None], row] = (distance >= 0) & is_near
        begin += own
    return seen


def expected(inputs: Inputs, rows: Rows) -> Results:
    query, key, value = (x.double().requires_grad_() for x in inputs[:3])
    group = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(group, 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, keys) * SCALING
    weights = scores.masked_fill(~visible(rows), -torch.inf).softmax(-1)
    out = torch.einsum("hqk,khd->qhd", weights, values)
    gradients = torch.autograd.grad(out, (query, key, value), inputs.dout.double())
    return Results(out.detach(), *gradients)


def compute(inputs: Inputs, rows: Rows) -> Results:
    query, key, value, dout = inputs
    saved = packed_attention.attend(query, key, value, rows)
    found = packed_attention.gradients(dout, saved, query, key, value, rows)
    return Results(saved.out, *found)


def assert_close(found: Results, wanted: Results, *, rtol: float, atol: float) -> None:
    for name, one, other in zip(Results._fields, found, wanted, strict=True):
        difference = (one.double() - other).abs()
        assert (difference <= atol + rtol * other.abs()).all(), f"{name}: {difference.max()}"


# --- values and gradients ---


@needs_kernels
@settings(max_examples=50, deadline=None)
@given(
    num_shared=st.integers(0, 60),
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    window=st.none() | st.integers(1, 80),
    heads=st.sampled_from([(1, 1), (4, 2), (9, 3), (3, 3), (10, 2), (126, 1)]),
    size=st.sampled_from([8, 16, 24, 64]),
    num_threads=st.integers(1, 2),
)
def test_any_packing(
    num_shared: int,
    lengths: list[int],
    window: int | None,
    heads: tuple[int, int],
    size: int,
    num_threads: int,
) -> None:
    rows = make_rows(num_shared, *lengths, window=window)
    inputs = make_inputs(rows, heads, size)
    with threads(num_threads):
        found = compute(inputs, rows)
    # Gradients of shared keys are sums over all rows and heads.
    assert_close(found, expected(inputs, rows), rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("lengths", [(500,), (3, 260, 7)], ids=str)
@pytest.mark.parametrize("num_shared", [0, 230])
def test_rows_of_several_chunks_and_spans(
    num_shared: int, lengths: tuple[int, ...], window: int | None
) -> None:
    rows = make_rows(num_shared, *lengths, window=window)
    inputs = make_inputs(rows)
    assert_close(compute(inputs, rows), expected(inputs, rows), rtol=1e-4, atol=1e-4)


@needs_kernels
def test_the_greatest_heads() -> None:
    rows = make_rows(20, 130, 5)
    inputs = make_inputs(rows, (2, 1), 256)
    assert_close(compute(inputs, rows), expected(inputs, rows), rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("window", [None, 9])
def test_half_precision_rounds_results_alone(window: int | None) -> None:
    rows = make_rows(25, 35, 90, 10, window=window)
    inputs = make_inputs(rows, (9, 3), 64, HALF)
    found = compute(inputs, rows)
    assert {x.dtype for x in found} == {HALF}
    # Half a unit in the last of 8 bits. Of `out` the backward pass knows what was rounded.
    wanted = expected(inputs, rows)
    assert_close(found, wanted, rtol=2**-8, atol=0.03)
    torch.testing.assert_close(found.out.double(), wanted.out, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(found.dvalue.double(), wanted.dvalue, rtol=2**-8, atol=1e-4)


# --- the same bits ---


@needs_kernels
@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("lengths", [(35,) * 16, (400, 3, 50)], ids=str)
def test_the_number_of_threads_changes_nothing(
    lengths: tuple[int, ...], dtype: torch.dtype
) -> None:
    rows = make_rows(25, *lengths)
    inputs = make_inputs(rows, (9, 3), 64, dtype)
    with threads(1):
        alone = compute(inputs, rows)
    for count in (2, 3):
        with threads(count):
            for one, other in zip(compute(inputs, rows), alone, strict=True):
                assert torch.equal(one, other)


# --- numbers of any size ---


@needs_kernels
def test_scores_of_any_size() -> None:
    rows = make_rows(20, 100, 30)
    inputs = make_inputs(rows)
    inputs = inputs._replace(query=inputs.query * 1000)
    found = compute(inputs, rows)
    wanted = expected(inputs, rows)
    torch.testing.assert_close(found.out.double(), wanted.out, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.dvalue.double(), wanted.dvalue, rtol=1e-3, atol=1e-3)
    huge = compute(inputs._replace(query=inputs.query * 1e15), rows)
    assert all(x.isfinite().all() for x in huge)


@needs_kernels
def test_what_is_no_number_stays_in_its_own_row() -> None:
    rows = make_rows(4, 50, 30, 20)
    inputs = make_inputs(rows)
    clean = compute(inputs, rows)
    inputs.key[60] = torch.nan
    found = compute(inputs, rows)
    for one, other in zip(found, clean, strict=True):
        assert torch.equal(one[4:54], other[4:54])
        assert torch.equal(one[84:], other[84:])
        assert one[60].isnan().all()
    assert torch.equal(found.out[:60], clean.out[:60])


# --- plans ---


@given(
    num_shared=st.integers(0, 3000),
    lengths=st.lists(st.integers(0, 2000), min_size=1, max_size=40).map(tuple),
)
def test_spans_follow_each_other_and_the_workspace_is_bounded(
    num_shared: int, lengths: tuple[int, ...]
) -> None:
    plan = make_plan(num_shared, lengths)
    num_tokens = num_shared + sum(lengths)
    begin = place = 0
    for span in plan.spans.tolist():
        assert span[0] == begin
        assert span[1] > begin
        assert span[3] == place
        begin = span[1]
        place += num_shared + span[1] - span[2]
    assert begin == num_tokens
    assert place == plan.num_covered
    assert place <= (packed_attention.MAX_SPANS + 1) * num_tokens


def test_short_rows_stay_whole() -> None:
    plan = make_plan(25, (35,) * 16)
    ends = plan.row_ends.tolist()
    assert all(end in ends for _, end, *_ in plan.spans.tolist())
    assert len(plan.spans) > 4


@pytest.mark.parametrize(
    ("heads", "size", "dtype", "fits"),
    [
        ((9, 3), 64, FLOAT, True),
        ((126, 1), 256, HALF, True),
        ((127, 1), 64, FLOAT, False),
        ((4, 2), 12, FLOAT, False),
        ((4, 2), 264, FLOAT, False),
        ((4, 2), 64, torch.float64, False),
    ],
)
def test_what_fits(heads: tuple[int, int], size: int, dtype: torch.dtype, fits: bool) -> None:
    assert packed_attention.fits(*heads, size, dtype) is fits


def test_what_the_kernel_cannot_read_is_never_handed_to_it() -> None:
    rows = make_rows(2, 3)
    query, key, value, _ = make_inputs(rows)
    for bad in [
        (query.transpose(0, 1), key, value),
        (query.bfloat16(), key, value),
        (query[:-1], key, value),
        (query, key, value[:, :1]),
    ]:
        with pytest.raises(AssertionError):
            packed_attention.attend(*bad, rows)
