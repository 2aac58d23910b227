"""The compiled norm and gated product against float64, transformers' norm and torch's SiLU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from finlora.native.elementwise import (
    fits,
    gated_silu,
    gated_silu_back,
    rms_norm,
    rms_norm_back,
    rotate,
    rotates,
)
from tests.native.kernels import needs_kernels, threads

pytestmark = needs_kernels

INFINITY, NAN = float("inf"), float("nan")
SIZES = [8, 24, 32, 104, 576]  # one vector, less than four, four, and some left over
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def every_bfloat16() -> Tensor:
    """[1, 65536]: every number that the type has, NaNs among them."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)[None]


def share_of_differences(one: Tensor, other: Tensor) -> float:
    return (one != other).float().mean().item()


def assert_equal_with_nans(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


# --- RMSNorm ---


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])  # with the first, epsilon counts
@pytest.mark.parametrize("size", SIZES)
def test_a_norm_is_that_of_float64_but_for_rounding(size: int, scale: float) -> None:
    x, weight = random(5, size) * scale, random(size, seed=1)
    wide = x.double()
    expected = weight * wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-6).double(), expected, rtol=1e-6, atol=0)


@both_types
@pytest.mark.parametrize("size", SIZES)
def test_a_norm_is_transformers_own(size: int, dtype: torch.dtype) -> None:
    norm = LlamaRMSNorm(size, eps=1e-5).to(dtype).requires_grad_(False)
    norm.weight.copy_(random(size, seed=1))
    x = random(2, 50, size, dtype=dtype)
    found, expected = rms_norm(x, norm.weight, 1e-5), norm(x)
    if dtype is torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    else:
        # Sums in another order round a number now and then to its neighbour; left out, the first
        # of the two roundings would change a fifth of all.
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)
        assert share_of_differences(found, expected) < 0.01


@both_types
def test_a_row_with_a_nan_or_an_infinity_spoils_no_other(dtype: torch.dtype) -> None:
    x = random(4, 64, dtype=dtype)
    clean = rms_norm(x, random(64, dtype=dtype), 1e-5)
    x[1, 7], x[2, 40] = NAN, INFINITY
    found = rms_norm(x, random(64, dtype=dtype), 1e-5)
    assert found[1].isnan().all()
    assert found[2].isnan().nonzero().tolist() == [[40]]  # infinity / infinity; others are 0
    assert not found[2].nan_to_num().any()
    assert torch.equal(found[::3], clean[::3])


def test_the_norm_of_heads_in_a_joined_output() -> None:
    joined, weight = random(1, 6, 4 * 32), random(32, seed=1)
    heads = joined[..., 32:96].view(1, 6, 2, 32)  # rows are not neighbours in memory
    assert torch.equal(rms_norm(heads, weight, 1e-5), rms_norm(heads.clone(), weight, 1e-5))


# --- the gated product ---


def test_silu_is_that_of_float64_but_for_rounding() -> None:
    """Below 0 the result is nearly x e^x: the exponential's relative error is seen in full."""
    spread = torch.linspace(-87.9, 100, 200_000, dtype=torch.float32)[None]
    numbers = every_bfloat16().float()
    moderate = numbers[numbers.abs() < 87.9][None, :-1]
    for gate in (spread, moderate[:, : moderate.shape[1] // 8 * 8]):
        found = gated_silu(gate, torch.ones_like(gate)).double()
        torch.testing.assert_close(found, F.silu(gate.double()), rtol=4e-7, atol=1e-45)


def test_silu_of_every_bfloat16_is_torchs() -> None:
    gate = every_bfloat16()
    found, expected = gated_silu(gate, torch.ones_like(gate)), F.silu(gate)
    # Torch goes on to -88.7 with numbers below 1e-36.
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-36, equal_nan=True)
    # A CPU with AVX512_BF16 keeps no numbers below the smallest normal one.
    regular = (gate.abs() < 87) & (expected.abs() >= torch.finfo(torch.float32).tiny)
    assert share_of_differences(found[regular], expected[regular]) < 0.001


@both_types
def test_extreme_numbers_are_treated_as_torch_does(dtype: torch.dtype) -> None:
    ends = [INFINITY, -INFINITY, NAN, 3e38, -3e38, 100.0, -100.0, 0.0]
    gate = torch.tensor(ends, dtype=dtype).repeat(8, 1)
    up = torch.tensor(ends, dtype=dtype)[:, None].repeat(1, 8)
    assert_equal_with_nans(gated_silu(gate, up), F.silu(gate) * up)


@both_types
@pytest.mark.parametrize("size", SIZES)
def test_the_halves_of_a_joined_output(size: int, dtype: torch.dtype) -> None:
    joined = random(1, 50, 2 * size, dtype=dtype)
    gate, up = joined.split(size, -1)
    found = gated_silu(gate, up)
    assert found.is_contiguous()
    expected = F.silu(gate) * up
    if dtype is torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    else:
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)
        assert share_of_differences(found, expected) < 0.01


def test_other_layouts_give_the_same() -> None:
    gate, up = random(3, 4, 16), random(3, 4, 16, seed=1)
    expected = gated_silu(gate.view(12, 16), up.view(12, 16)).view(3, 4, 16)
    joined = torch.cat((gate, up), -1)
    layouts = [
        (gate, up),
        (joined[..., :16], joined[..., 16:]),
        (joined[..., :16], up),  # other strides
        (gate.transpose(0, 1).contiguous().transpose(0, 1), up),
        (gate.mT.contiguous().mT, up.mT.contiguous().mT),  # no number's neighbour follows it
    ]
    for one, other in layouts:
        assert torch.equal(gated_silu(one, other), expected)
    first_columns = joined.transpose(0, 1)[:, :1]  # [4, 1, 32]: rows of one number's distance
    halves = first_columns[..., :16], first_columns[..., 16:]
    assert torch.equal(gated_silu(*halves), expected.transpose(0, 1)[:, :1])


# --- gradients ---


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Of float64, which has not rounded to the type."""
    tolerance = 1e-5 if found.dtype is torch.float32 else 2**-7
    limit = tolerance * expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=limit)


@both_types
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("size", SIZES)
def test_a_norm_again_with_its_gradient(size: int, scale: float, dtype: torch.dtype) -> None:
    x, dy = random(50, size, dtype=dtype) * scale, random(50, size, dtype=dtype, seed=1)
    weight = random(size, dtype=dtype, seed=2)
    y, dx = rms_norm_back(x, dy, weight, 1e-5)
    assert torch.equal(y, rms_norm(x, weight, 1e-5))
    wide = x.double().requires_grad_()
    normed = weight * wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    (expected,) = torch.autograd.grad(normed, wide, dy.double())
    assert_near(dx, expected)


@both_types
@pytest.mark.parametrize("shape", [(1, 8), (3, 24), (2, 50, 576)])
def test_a_gated_product_again_with_its_gradients(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    gate, up, dy = (random(*shape, dtype=dtype, seed=seed) * 3 for seed in range(3))
    y, d_gate, d_up = gated_silu_back(gate, up, dy)
    torch.testing.assert_close(y, gated_silu(gate, up))
    wide = [tensor.double().requires_grad_() for tensor in (gate, up)]
    expected = torch.autograd.grad(F.silu(wide[0]) * wide[1], wide, dy.double())
    for found, wanted in zip((d_gate, d_up), expected, strict=True):
        assert_near(found, wanted)


@both_types
def test_gradients_of_extreme_gates_are_torchs(dtype: torch.dtype) -> None:
    gate = torch.tensor([-1e30, -200.0, -88.5, -30.0, 30.0, 88.5, 200.0, 1e30], dtype=dtype)
    _, d_gate, d_up = gated_silu_back(gate, torch.ones_like(gate), torch.ones_like(gate))
    wide = gate.double().requires_grad_()
    (expected,) = torch.autograd.grad(F.silu(wide).sum(), wide)
    torch.testing.assert_close(d_gate.double(), expected, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(d_up.double(), F.silu(gate.double()), rtol=1e-2, atol=1e-6)


# --- rotary embedding ---


def angles(num_tokens: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    half = random(num_tokens, size // 2) * 3
    angle = torch.cat((half, half), -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


@both_types
@pytest.mark.parametrize("size", [16, 64])
def test_heads_are_turned_as_llamas_are(size: int, dtype: torch.dtype) -> None:
    x = random(1, 90, 9, size, dtype=dtype)
    cos, sin = angles(90, size, dtype)
    found = rotate(x, cos[None], sin[None])
    expected, _ = apply_rotary_pos_emb(*(x.double(),) * 2, cos[None], sin[None], unsqueeze_dim=2)
    assert_near(found, expected)


@both_types
def test_turning_back_gives_what_was_turned(dtype: torch.dtype) -> None:
    x = random(1, 7, 3, 32, dtype=dtype)
    cos, sin = angles(7, 32, dtype)
    assert_near(
        rotate(rotate(x, cos[None], sin[None]), cos[None], sin[None], back=True), x.double()
    )


# --- all ---


@both_types
def test_a_row_has_the_same_bits_whatever_other_rows_and_threads_there_are(
    dtype: torch.dtype,
) -> None:
    x, weight = random(300, 576, dtype=dtype), random(576, dtype=dtype, seed=1)
    gate, up = random(300, 1152, dtype=dtype).split(576, -1)
    cos, sin = angles(300, 64, dtype)
    heads = x.view(300, 9, 64)

    def everything() -> tuple[Tensor, ...]:
        return (
            rms_norm(x, weight, 1e-5),
            gated_silu(gate, up),
            *rms_norm_back(x, gate, weight, 1e-5),
            *gated_silu_back(gate, up, x),
            rotate(heads, cos, sin),
        )

    with threads(1):
        alone = everything()
    for count in (2, 3):
        with threads(count):
            for found, expected in zip(everything(), alone, strict=True):
                assert torch.equal(found, expected)
    normed, gated = alone[:2]
    for rows in (slice(0, 1), slice(7, 12), slice(40, 297)):
        assert torch.equal(rms_norm(x[rows], weight, 1e-5), normed[rows])
        assert torch.equal(gated_silu(gate[rows], up[rows]), gated[rows])


def test_no_rows_have_no_results() -> None:
    assert rms_norm(torch.empty(0, 16), torch.ones(16), 1e-5).shape == (0, 16)
    assert gated_silu(torch.empty(1, 0, 16), torch.empty(1, 0, 16)).shape == (1, 0, 16)


def test_what_the_kernels_cannot_read_is_never_handed_to_them() -> None:
    half = torch.ones(1, 16, dtype=torch.float16)
    for x, other in [(half, half), (half.float(), half.bfloat16())]:
        with pytest.raises(AssertionError):
            rms_norm(x, other[0], 1e-5)
        with pytest.raises(AssertionError):
            gated_silu(x, other)
    with pytest.raises(AssertionError):
        rms_norm(torch.ones(1, 12), torch.ones(12), 1e-5)
    assert not fits(half)
    assert not fits(torch.ones(1, 12))
    assert fits(torch.ones(1, 24))
    assert not rotates(torch.ones(1, 24))
