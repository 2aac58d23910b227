"""The compiled rotary embedding against transformers' own."""

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from finlora.native.rotary import rotate_and_store
from tests.native.kernels import needs_kernels

pytestmark = needs_kernels


def angles(num_tokens: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As a model makes them: the halves are the same."""
    half = torch.randn(num_tokens, size // 2).repeat(1, 2)
    return half.cos().to(dtype), half.sin().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 7, 200])
@pytest.mark.parametrize("size", [16, 64, 96])
def test_the_bits_are_those_of_separate_operations(
    num_tokens: int, size: int, dtype: torch.dtype
) -> None:
    # Views of a joined output, as siblings give them.
    joined = torch.randn(num_tokens, 6 + 2 + 2, size).to(dtype)
    query, key, value = joined.split((6, 2, 2), 1)
    cos, sin = angles(num_tokens, size, dtype)
    pool = torch.zeros(num_tokens + 5, 2, 2, size, dtype=dtype)
    pages = torch.randperm(num_tokens + 5)[:num_tokens]
    rotated = apply_rotary_pos_emb(query, key, cos, sin)
    before = value.clone()

    rotate_and_store(query, key, value, (cos, sin), pool, pages)

    assert torch.equal(query, rotated[0])
    assert torch.equal(pool[pages, 0], rotated[1])
    assert torch.equal(pool[pages, 1], before)
    others = torch.ones(len(pool), dtype=torch.bool).index_fill(0, pages, False)
    assert not pool[others].any()


def test_heads_that_are_no_neighbours_are_an_error_of_ours() -> None:
    heads = torch.randn(4, 3, 16)
    with pytest.raises(AssertionError):
        rotate_and_store(
            heads.transpose(0, 1),
            heads,
            heads,
            (torch.ones(4, 16), torch.zeros(4, 16)),
            torch.zeros(9, 2, 3, 16),
            torch.arange(4),
        )
