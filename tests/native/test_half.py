"""The compiled products with weights in bfloat16 against float64, and their look-ups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finlora.native.four_bit import PANEL
from finlora.native.half import CHUNK_ROWS, HalfPanels, is_exact
from tests.native.kernels import needs_kernels, threads

pytestmark = needs_kernels


def half_weight(out_features: int, in_features: int) -> Tensor:
    """Random float32 numbers that bfloat16 has."""
    weight = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0))
    return weight.bfloat16().float()


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 13) | st.sampled_from([191, 192, 193, 400]),
    num_panels=st.integers(1, 5),
    in_features=st.integers(1, 40) | st.sampled_from([255, 256, 257, 576, 700]),
    num_threads=st.integers(1, 3),
)
def test_a_product_is_that_of_float64_but_for_rounding(
    num_rows: int, num_panels: int, in_features: int, num_threads: int
) -> None:
    weight = half_weight(PANEL * num_panels, in_features)
    panels = HalfPanels.arrange(weight)
    x = torch.randn(num_rows, in_features)
    with threads(num_threads):
        found = panels.product(x)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("in_features", [1, 300])
def test_the_numbers_are_those_of_the_weight_and_take_two_bytes_each(in_features: int) -> None:
    weight = half_weight(48, in_features)
    panels = HalfPanels.arrange(weight)
    assert torch.equal(panels.product(torch.eye(in_features)), weight.T)
    assert torch.equal(panels.rows(torch.arange(48)), weight)
    assert panels.nbytes == 48 * in_features * 2


def test_a_row_has_the_same_bits_whatever_other_rows_there_are() -> None:
    panels = HalfPanels.arrange(half_weight(64, 577))
    x = torch.randn(400, 577)
    together = panels.product(x)
    for size in (1, 2, 3, 4, 5, 6, 7, 200):
        for start in (0, 5, 193):
            rows = slice(start, start + size)
            assert torch.equal(panels.product(x[rows]), together[rows])


def test_rows_that_are_not_neighbours_in_memory_are_copied_first() -> None:
    weight = half_weight(16, 64)
    x = torch.randn(64, 6)
    found = HalfPanels.arrange(weight).product(x.T)
    torch.testing.assert_close(found, x.T @ weight.T, atol=1e-5, rtol=1e-5)


def test_no_rows_have_no_products() -> None:
    panels = HalfPanels.arrange(half_weight(16, 64))
    assert panels.product(torch.empty(0, 64)).shape == (0, 16)
    assert panels.rows(torch.empty(0, dtype=torch.int64)).shape == (0, 64)


def test_rows_are_looked_up_in_any_order_and_shape() -> None:
    weight = half_weight(64, 40)
    ids = torch.tensor([[63, 0, 17], [17, 16, 15]])
    found = HalfPanels.arrange(weight).rows(ids)
    assert found.dtype is torch.float32
    assert torch.equal(found, weight[ids])


@pytest.mark.parametrize("row", [0, CHUNK_ROWS, CHUNK_ROWS + 15])
@pytest.mark.parametrize("number", [1 + 2**-8, 1e-45, float("nan")])
def test_one_number_that_bfloat16_lacks_is_found(row: int, number: float) -> None:
    weight = half_weight(CHUNK_ROWS + 16, 3)
    assert is_exact(weight)
    weight[row, 2] = number
    assert not is_exact(weight)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 13) | st.sampled_from([191, 400]),
    num_panels=st.integers(1, 9) | st.sampled_from([150]),
    num_inputs=st.integers(1, 5),
    num_threads=st.integers(1, 3),
)
def test_the_way_back_is_that_of_float64_but_for_rounding(
    num_rows: int, num_panels: int, num_inputs: int, num_threads: int
) -> None:
    weight = half_weight(PANEL * num_panels, PANEL * num_inputs)
    panels = HalfPanels.arrange(weight)
    y = torch.randn(num_rows, PANEL * num_panels)
    with threads(num_threads):
        found = panels.product_back(y)
    with threads(1):
        assert torch.equal(panels.product_back(y), found)
    torch.testing.assert_close(found.double(), y.double() @ weight.double(), atol=1e-4, rtol=1e-5)


def test_the_weights_of_the_way_back_are_the_same() -> None:
    weight = half_weight(48, 64)
    assert torch.equal(HalfPanels.arrange(weight).product_back(torch.eye(48)), weight)
