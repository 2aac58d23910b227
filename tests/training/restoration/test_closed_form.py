import pytest
import torch
from torch import Tensor

from finlora.training.restoration.closed_form import Factors, correct


@pytest.fixture
def error() -> Tensor:
    return torch.randn(48, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def inputs() -> Tensor:
    """[tokens, 64] with some directions far stronger than others."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(64, 64, generator=generator) * torch.logspace(0, -2, 64)
    return torch.randn(4096, 64, generator=generator) @ mix.T


def moment(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def loss(error: Tensor, factors: Factors, inputs: Tensor) -> float:
    """E ||(E - B A) x||^2."""
    return (inputs @ (error - factors.b @ factors.a).T).square().sum(1).mean().item()


def test_full_rank_takes_the_whole_error(error: Tensor, inputs: Tensor) -> None:
    factors = correct(error, moment(inputs), 48)
    torch.testing.assert_close(factors.b @ factors.a, error, atol=1e-3, rtol=1e-3)


def test_with_equal_inputs_it_is_the_truncated_svd(error: Tensor) -> None:
    factors = correct(error, torch.eye(64), 8)
    u, s, vh = torch.linalg.svd(error, full_matrices=False)
    expected = (u[:, :8] * s[:8]) @ vh[:8]
    torch.testing.assert_close(factors.b @ factors.a, expected, atol=1e-4, rtol=1e-4)


def test_no_other_update_of_its_rank_does_better(error: Tensor, inputs: Tensor) -> None:
    """A minimum: random steps lead nowhere, and the plain SVD of the error is worse."""
    found = correct(error, moment(inputs), 4)
    best = loss(error, found, inputs)
    plain = correct(error, torch.eye(64), 4)
    assert best < 0.9 * loss(error, plain, inputs)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        a = found.a + 0.02 * found.a.std() * torch.randn(found.a.shape, generator=generator)
        b = found.b + 0.02 * found.b.std() * torch.randn(found.b.shape, generator=generator)
        assert loss(error, Factors(a, b), inputs) > 0.999 * best


def test_a_lower_rank_is_the_beginning_of_a_higher_one(error: Tensor, inputs: Tensor) -> None:
    high, low = correct(error, moment(inputs), 8), correct(error, moment(inputs), 3)
    torch.testing.assert_close(high.first(3).b @ high.first(3).a, low.b @ low.a)
    torch.testing.assert_close(high.a.norm(dim=1), high.b.norm(dim=0))


def test_directions_that_no_text_showed_do_no_harm(error: Tensor) -> None:
    silent = torch.zeros(64, 64)
    silent[0, 0] = 1.0
    factors = correct(error, silent, 4)
    assert factors.a.isfinite().all()
    assert factors.b.isfinite().all()
