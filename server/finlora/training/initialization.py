"""Where the two matrices of an update start: the base's output stays as it was."""

import math

import torch
from torch import Tensor, nn

from finlora.training.config import Init


def initial_matrices(
    init: Init, rank: int, in_features: int, out_features: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A [rank, in_features] and B [out_features, rank] in float32; B A is zero.

    `eva` and `qera` start as the default does, until they have seen the data.
    """
    if init == "orthogonal":
        return _orthogonal(rank, in_features, out_features, generator)
    a = torch.empty(rank, in_features)
    if init == "gaussian":
        a.normal_(0, 1 / rank, generator=generator)
    else:
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
    return a, torch.zeros(out_features, rank)


def _orthogonal(
    rank: int, in_features: int, out_features: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Both differ from zero, their product does not: A and B use orthogonal halves of the rank.

    As PEFT does it (datta0.github.io/posts/rethink-lora-init), with its factor of a tenth.
    """
    basis, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    a = basis[0::2].T @ torch.randn(rank // 2, in_features, generator=generator)
    b = torch.randn(out_features, rank // 2, generator=generator) @ basis[1::2]
    return a / 10, b / 10
