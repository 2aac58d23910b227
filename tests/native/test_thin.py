"""The compiled thin products against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finlora.native import thin
from tests.native.kernels import needs_kernels, threads

pytestmark = needs_kernels

ranks = st.integers(0, 13) | st.sampled_from([24, 63, 64, 65, 130])
depths = st.integers(1, 20) | st.sampled_from([255, 256, 257, 700])


@settings(max_examples=80, deadline=None)
@given(num_ranks=ranks, depth=depths, num_panels=st.integers(1, 9), num_threads=st.integers(1, 3))
def test_few_rows_by_a_large_matrix(
    num_ranks: int, depth: int, num_panels: int, num_threads: int
) -> None:
    few, large = torch.randn(num_ranks, depth), torch.randn(depth, 16 * num_panels)
    with threads(num_threads):
        found = thin.product(few, large)
    torch.testing.assert_close(found.double(), few.double() @ large.double(), atol=1e-4, rtol=1e-5)


@settings(max_examples=80, deadline=None)
@given(num_ranks=ranks, num_rows=depths, size=st.integers(1, 90), num_threads=st.integers(1, 3))
def test_few_rows_by_many(num_ranks: int, num_rows: int, size: int, num_threads: int) -> None:
    few, rows = torch.randn(num_ranks, 8 * size), torch.randn(num_rows, 8 * size)
    with threads(num_threads):
        found = thin.product_of_rows(few, rows)
    expected = few.double() @ rows.double().T
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


def test_what_lies_otherwise_in_memory_is_copied_first() -> None:
    few, large = torch.randn(5, 3), torch.randn(32, 5)
    torch.testing.assert_close(thin.product(few.T, large.T), few.T @ large.T)
    rows = torch.randn(8, 7)
    torch.testing.assert_close(
        thin.product_of_rows(torch.ones(2, 8), rows.T), torch.ones(2, 8) @ rows
    )


def test_what_does_not_fit_is_never_handed_over() -> None:
    assert thin.fits(torch.empty(3, 32))
    assert not thin.fits(torch.empty(3, 24))
    assert not thin.fits(torch.empty(3, 32, dtype=torch.bfloat16))
    assert not thin.fits(torch.empty(3, 32, dtype=torch.float64))
    with pytest.raises(AssertionError):
        thin.product(torch.empty(2, 3), torch.empty(3, 24))
    with pytest.raises(AssertionError):
        thin.product_of_rows(torch.empty(2, 9), torch.empty(3, 9))
