"""The compiled products of rows in bfloat16 against float64."""

import pytest
import torch
from bitsandbytes.functional import QuantState, quantize_4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finlora.native.paired import PANEL, PairedPanels, PairedWeight
from tests.native.kernels import needs_avx512_kernels, threads

pytestmark = needs_avx512_kernels
HALF = torch.bfloat16
TILES = [11, 12, 13, 23, 24, 25, 191, 192, 193, 400]  # borders of tiles and of groups of them


def quantized(
    out_features: int, in_features: int, *, block_size: int = 64, quant_type: str = "nf4"
) -> tuple[PairedWeight, Tensor]:
    """A random weight in panels, and its numbers: of the code book and the scales in bfloat16."""
    weight = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0))
    stored, state = quantize_4bit(weight, blocksize=block_size, quant_type=quant_type)
    assert isinstance(state, QuantState)
    codes = stored.view(torch.uint8).view(out_features, -1)
    scales = state.absmax.view(out_features, -1)
    single = torch.stack((codes >> 4, codes & 15), -1).flatten(1).long()
    numbers = state.code.to(HALF).double()[single].view(*scales.shape, block_size)
    meant = (numbers * scales.to(HALF).double()[..., None]).view(weight.shape)
    return PairedWeight.arrange(codes, scales, state.code), meant


def half_rows(num_rows: int, size: int) -> Tensor:
    return torch.randn(num_rows, size).to(HALF)


def assert_rounded(found: Tensor, x: Tensor, weight: Tensor) -> None:
    """The product but for the sums' rounding in float32, and once to bfloat16."""
    expected = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().T.abs()
    assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + 2**-20 * size).all()


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("block_size", [64, 128, 256])
# One block and panel; parts of 256 features that are cut short; more than one part.
@pytest.mark.parametrize("shape", [(32, 256), (96, 768), (64, 1280)])
def test_the_weights_are_the_code_book_times_the_scales(
    shape: tuple[int, int], block_size: int, quant_type: str
) -> None:
    panels, weight = quantized(*shape, block_size=block_size, quant_type=quant_type)
    assert torch.equal(panels.product(torch.eye(shape[1], dtype=HALF)), weight.T.to(HALF))
    few = torch.eye(shape[1], dtype=HALF)[:5]
    assert torch.equal(panels.product(few), weight.T[:5].to(HALF))


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 13) | st.sampled_from(TILES),
    num_panels=st.integers(1, 5),
    num_blocks=st.integers(1, 11),
    num_threads=st.integers(1, 2),
)
def test_a_product_is_that_of_float64_but_for_rounding(
    num_rows: int, num_panels: int, num_blocks: int, num_threads: int
) -> None:
    panels, weight = quantized(PANEL * num_panels, 64 * num_blocks)
    x = half_rows(num_rows, 64 * num_blocks)
    with threads(num_threads):
        found = panels.product(x)
    assert_rounded(found, x, weight)


def test_a_row_has_the_same_bits_whatever_other_rows_there_are() -> None:
    four_bit, _ = quantized(64, 576)
    half = PairedPanels.arrange(half_rows(64, 576))
    x = half_rows(400, 576)
    for panels in (four_bit, half):
        together = panels.product(x)
        for size in (1, 2, 7, 11, 12, 13, 24, 25, 37, 200):
            for start in (0, 5, 193):
                rows = slice(start, start + size)
                assert torch.equal(panels.product(x[rows]), together[rows])


def test_rows_that_are_not_neighbours_in_memory_are_copied_first() -> None:
    panels, weight = quantized(32, 64)
    x = half_rows(64, 6)
    assert_rounded(panels.product(x.T), x.T, weight)


def test_no_rows_have_no_products() -> None:
    panels, _ = quantized(32, 64)
    assert panels.product(torch.empty(0, 64, dtype=HALF)).shape == (0, 32)


def test_joined_weights_give_both_outputs_in_a_row() -> None:
    first, _ = quantized(32, 128)
    second, _ = quantized(96, 128)
    x = half_rows(7, 128)
    both = torch.cat((first.product(x), second.product(x)), 1)
    assert torch.equal(PairedWeight.joined([first, second]).product(x), both)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 13) | st.sampled_from(TILES),
    num_panels=st.integers(1, 5),
    num_pairs=st.integers(1, 20) | st.sampled_from([127, 128, 129, 288]),
    num_threads=st.integers(1, 3),
)
def test_products_with_weights_in_bfloat16_stay_in_float32(
    num_rows: int, num_panels: int, num_pairs: int, num_threads: int
) -> None:
    weight = half_rows(PANEL * num_panels, 2 * num_pairs)
    x = half_rows(num_rows, 2 * num_pairs)
    with threads(num_threads):
        found = PairedPanels.arrange(weight).product(x)
    assert found.dtype is torch.float32
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-5)


def test_rows_of_panels_are_those_of_the_weight() -> None:
    weight = half_rows(96, 10)
    panels = PairedPanels.arrange(weight)
    ids = torch.tensor([[0, 95], [31, 32]])
    assert torch.equal(panels.rows(ids), weight[ids])
    assert panels.nbytes == weight.nbytes
