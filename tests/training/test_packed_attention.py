"""Attention of packed rows by our kernel or by torch's operations: the same, each where it fits."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from finlora.native import packed_attention as kernel
from finlora.training import native_packed_attention
from finlora.training.packed_attention import packed_attention
from finlora.training.packing import Packing
from tests.native.kernels import needs_kernels

FLOAT, HALF = torch.float32, torch.bfloat16
NUM_HEADS, NUM_KV_HEADS, SIZE = 6, 2, 16


class Heads(NamedTuple):
    """What a block's projections give: [1, T, heads or kv heads, size]."""

    query: Tensor
    key: Tensor
    value: Tensor


def make_heads(packing: Packing, dtype: torch.dtype = FLOAT) -> Heads:
    generator = torch.Generator().manual_seed(0)
    num_tokens = packing.num_shared + sum(packing.row_lengths)
    shapes = [(1, num_tokens, n, SIZE) for n in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)]
    drawn = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return Heads(*(x.requires_grad_() for x in drawn))


def attend(
    heads: Heads, packing: Packing, *, window: int | None = None, softcap: float | None = None
) -> Tensor:
    """As a block calls it."""
    query, key, value = (x.transpose(1, 2) for x in heads)
    out, _ = packed_attention(
        nn.Identity(),
        query,
        key,
        value,
        None,
        sliding_window=window,
        softcap=softcap,
        packing=packing,
    )
    return out


def attend_with_gradients(
    heads: Heads, packing: Packing, window: int | None = None
) -> tuple[Tensor, ...]:
    out = attend(heads, packing, window=window)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out, *torch.autograd.grad(out, heads, dout)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Heads]:
    """What our kernel is called with from now on."""
    calls, forward = [], kernel.attend

    def attend(query: Tensor, key: Tensor, value: Tensor, rows: kernel.Rows) -> kernel.Saved:
        calls.append(Heads(query, key, value))
        return forward(query, key, value, rows)

    monkeypatch.setattr(kernel, "attend", attend)
    return calls


PACKINGS = [Packing(25, (35, 10, 90)), Packing(0, (7, 40)), Packing(30, (1,)), Packing(130, (3, 9))]


@needs_kernels
@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_both_ways_agree(
    packing: Packing, window: int | None, calls: list[Heads], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = make_heads(packing)
    ours = attend_with_gradients(heads, packing, window)
    assert len(calls) == 1
    monkeypatch.setattr(native_packed_attention, "can_attend", lambda *_: False)
    torchs = attend_with_gradients(heads, packing, window)
    assert len(calls) == 1
    torch.testing.assert_close(ours, torchs, atol=1e-4, rtol=1e-4)


@needs_kernels
def test_both_ways_agree_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    packing = PACKINGS[0]
    heads = make_heads(packing, HALF)
    ours = attend_with_gradients(heads, packing)
    monkeypatch.setattr(native_packed_attention, "can_attend", lambda *_: False)
    # Torch rounds probabilities, and the gradients of shared keys row by row.
    torch.testing.assert_close(ours, attend_with_gradients(heads, packing), atol=0.1, rtol=0.05)


@needs_kernels
def test_nothing_is_copied_on_the_way_to_the_kernel(calls: list[Heads]) -> None:
    heads = make_heads(PACKINGS[0])
    attend(heads, PACKINGS[0])
    assert [x.data_ptr() for x in calls[0]] == [x.data_ptr() for x in heads]


@needs_kernels
def test_heads_that_lie_otherwise_are_copied() -> None:
    heads = make_heads(PACKINGS[0])
    others = Heads(*(x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in heads))
    assert torch.equal(attend(others, PACKINGS[0]), attend(heads, PACKINGS[0]))


def test_what_our_kernel_does_not_know_is_torchs(calls: list[Heads]) -> None:
    packing = PACKINGS[0]
    heads = make_heads(packing)
    attend(heads, packing, softcap=5.0)
    attend(Heads(*(x.double() for x in heads)), packing)
    attend(Heads(*(x[..., :12] for x in heads)), packing)
    assert calls == []
