import pytest
import torch
from torch import Tensor

from finlora.training.packing import Layout, Packing, gather, spread

CPU = torch.device("cpu")
NUM_HEADS, SIZE = 2, 3
PACKING = Packing(2, (3, 1, 4))


def _layout(packing: Packing, *, sees_shared: bool) -> Layout:
    return packing.layout(NUM_HEADS, CPU, sees_shared=sees_shared)


def _tokens(packing: Packing) -> Tensor:
    num_tokens = packing.num_shared + sum(packing.row_lengths)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_tokens, NUM_HEADS, SIZE, dtype=torch.float64, generator=generator)


def test_positions_begin_anew_behind_the_shared_tokens() -> None:
    assert PACKING.positions(CPU).tolist() == [[0, 1, 2, 3, 4, 2, 2, 3, 4, 5]]


@pytest.mark.parametrize("sees_shared", [False, True])
def test_a_row_is_its_tokens_one_head_after_the_other(sees_shared: bool) -> None:
    x = _tokens(PACKING)
    shared, rows = spread(x, _layout(PACKING, sees_shared=sees_shared))
    assert torch.equal(shared, x[:2].transpose(0, 1))
    by_row = rows.unflatten(0, (3, NUM_HEADS))
    start = 2
    for row, length in zip(by_row, PACKING.row_lengths, strict=True):
        own = x[start : start + length]
        expected = torch.cat((x[:2], own)) if sees_shared else own
        assert torch.equal(row[:, : len(expected)], expected.transpose(0, 1))
        start += length


@pytest.mark.parametrize("packing", [PACKING, Packing(0, (2, 3)), Packing(3, (1,))], ids=str)
def test_queries_come_back_to_their_tokens(packing: Packing) -> None:
    layout, x = _layout(packing, sees_shared=False), _tokens(packing)
    assert torch.equal(gather(*spread(x, layout), layout), x)


@pytest.mark.parametrize("sees_shared", [False, True])
def test_gradients_of_spreading_are_numerical_ones(sees_shared: bool) -> None:
    layout = _layout(PACKING, sees_shared=sees_shared)

    def seen(x: Tensor) -> tuple[Tensor, Tensor]:
        """As attention uses it: what a row is padded with has no gradient."""
        shared, rows = spread(x, layout)
        real = torch.zeros(rows.shape[:2], dtype=torch.bool).flatten()
        real[layout.places] = True
        real = real.view(rows.shape[:2])
        if sees_shared:
            real[:, : layout.num_shared] = True
        return shared, rows * real[..., None]

    assert torch.autograd.gradcheck(seen, _tokens(PACKING).requires_grad_())


def test_gradients_of_gathering_are_numerical_ones() -> None:
    layout = _layout(PACKING, sees_shared=False)
    shared, rows = (part.clone().requires_grad_() for part in spread(_tokens(PACKING), layout))
    assert torch.autograd.gradcheck(lambda s, r: gather(s, r, layout), (shared, rows))


def test_a_layout_is_made_once() -> None:
    packing = Packing(2, (3, 1, 4))
    assert _layout(packing, sees_shared=True) is _layout(packing, sees_shared=True)
    assert _layout(packing, sees_shared=True) is not _layout(packing, sees_shared=False)
    assert packing == PACKING
