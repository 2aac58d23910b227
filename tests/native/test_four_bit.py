"""The compiled products against bitsandbytes' dequantisation and float64."""

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finlora.native.four_bit import PANEL, PanelWeight
from tests.native.kernels import needs_kernels, threads

pytestmark = needs_kernels


def quantized(
    out_features: int, in_features: int, *, block_size: int = 64, quant_type: str = "nf4"
) -> tuple[PanelWeight, Tensor]:
    """A random weight in panels, and the numbers that bitsandbytes makes of it."""
    weight = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0))
    stored, state = quantize_4bit(weight, blocksize=block_size, quant_type=quant_type)
    assert isinstance(state, QuantState)
    codes = stored.view(torch.uint8).view(out_features, -1)
    panels = PanelWeight.arrange(codes, state.absmax.view(out_features, -1), state.code)
    return panels, dequantize_4bit(stored, state)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("block_size", [64, 128])
# One block and panel; parts of 256 features that are cut short; more than one part.
@pytest.mark.parametrize("shape", [(16, 128), (48, 384), (32, 640)])
def test_the_weights_are_bitsandbytes_own_bit_by_bit(
    shape: tuple[int, int], block_size: int, quant_type: str
) -> None:
    panels, weight = quantized(*shape, block_size=block_size, quant_type=quant_type)
    assert torch.equal(panels.transposed(slice(0, panels.num_panels)), weight.T)
    assert torch.equal(panels.transposed(slice(0, 1)), weight[:PANEL].T)
    assert torch.equal(panels.product(torch.eye(shape[1])), weight.T)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 13) | st.sampled_from([191, 192, 193, 400]),
    num_panels=st.integers(1, 5),
    num_blocks=st.integers(1, 11),
    num_threads=st.integers(1, 2),
)
def test_a_product_is_that_of_float64_but_for_rounding(
    num_rows: int, num_panels: int, num_blocks: int, num_threads: int
) -> None:
    panels, weight = quantized(PANEL * num_panels, 64 * num_blocks)
    x = torch.randn(num_rows, 64 * num_blocks)
    with threads(num_threads):
        found = panels.product(x)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


def test_a_row_has_the_same_bits_whatever_other_rows_there_are() -> None:
    panels, _ = quantized(64, 576)
    x = torch.randn(400, 576)
    together = panels.product(x)
    for size in (1, 2, 3, 4, 5, 6, 7, 200):
        for start in (0, 5, 193):
            rows = slice(start, start + size)
            assert torch.equal(panels.product(x[rows]), together[rows])


def test_rows_that_are_not_neighbours_in_memory_are_copied_first() -> None:
    panels, weight = quantized(16, 64)
    x = torch.randn(64, 6)
    torch.testing.assert_close(panels.product(x.T), x.T @ weight.T, atol=1e-5, rtol=1e-5)


def test_no_rows_have_no_products() -> None:
    panels, _ = quantized(16, 64)
    assert panels.product(torch.empty(0, 64)).shape == (0, 16)


def test_joined_weights_give_both_outputs_in_a_row() -> None:
    first, _ = quantized(16, 128)
    second, _ = quantized(48, 128)
    x = torch.randn(7, 128)
    both = torch.cat((first.product(x), second.product(x)), 1)
    assert torch.equal(PanelWeight.joined([first, second]).product(x), both)


# --- the way back, and updates ---


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("shape", [(16, 128), (48, 384), (320, 640)])
def test_the_weights_of_the_way_back_are_the_same_bit_by_bit(
    shape: tuple[int, int], block_size: int, quant_type: str
) -> None:
    panels, weight = quantized(*shape, block_size=block_size, quant_type=quant_type)
    assert torch.equal(panels.product_back(torch.eye(shape[0])), weight)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 13) | st.sampled_from([191, 192, 193, 400]),
    num_panels=st.integers(1, 5) | st.sampled_from([17, 33]),
    num_blocks=st.integers(1, 3),
    num_threads=st.integers(1, 2),
    adds=st.booleans(),
    num_ranks=st.none() | st.integers(0, 9),
)
def test_both_ways_are_those_of_float64_but_for_rounding(
    num_rows: int,
    num_panels: int,
    num_blocks: int,
    num_threads: int,
    adds: bool,
    num_ranks: int | None,
) -> None:
    panels, weight = quantized(PANEL * num_panels, 64 * num_blocks)
    x, y = torch.randn(num_rows, 64 * num_blocks), torch.randn(num_rows, PANEL * num_panels)
    low = torch.randn(num_ranks or 0, num_rows)
    a, b = torch.randn(len(low), x.shape[1]), torch.randn(len(low), y.shape[1])
    there = torch.randn_like(x)
    has_update = num_ranks is not None
    with threads(num_threads):
        found = panels.product(x, (low, b) if has_update else None)
        back = panels.product_back(
            y, (low, a) if has_update else None, there.clone() if adds else None
        )
    wide, low = weight.double(), low.double()
    expected = x.double() @ wide.T + low.T @ b.double()
    expected_back = y.double() @ wide + low.T @ a.double() + (there.double() if adds else 0)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(back.double(), expected_back, atol=1e-4, rtol=1e-5)


def test_what_is_added_to_is_the_result() -> None:
    panels, _ = quantized(32, 64)
    there = torch.ones(3, 64)
    assert panels.product_back(torch.zeros(3, 32), None, there) is there
    assert torch.equal(there, torch.ones(3, 64))
