"""The best low-rank correction of a layer's quantisation error, without any training.

Of all B A of rank r, find the one that keeps E ||(E - B A) x||^2 lowest, E being the error of the
weight and x the layer's input. With the inputs' second moments R = L L^T that is ||(E - B A) L||^2,
and by Eckart and Young the answer is the truncated SVD of E L, times L^-1 on the right (QERA, arXiv
2410.06040, derives the same with the symmetric root of R). The factors of a lower rank are the
first of a higher one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finlora.bases.spec import LinearShape
from finlora.errors import ConfigError
from finlora.model import LoadedBase
from finlora.training.restoration.moments import input_moments

DAMPING = 1e-3  # of the mean second moment, for directions that the text never showed


@dataclass(frozen=True, slots=True)
class Factors:
    """a [rank, in_features], b [out_features, rank]; each pair has the same norm on both sides."""

    a: Tensor
    b: Tensor

    def first(self, rank: int) -> "Factors":
        """The best factors of a lower rank."""
        return Factors(self.a[:rank], self.b[:, :rank])


def check_rank(layers: Mapping[str, LinearShape], rank: int) -> None:
    """Raises ConfigError where a layer's error has no such rank: there would be fewer factors."""
    for name, shape in layers.items():
        highest = min(shape.in_features, shape.out_features)
        if rank > highest:
            raise ConfigError(
                f"rank {rank} is too high for {name}, whose correction has {highest} at most"
            )


@torch.no_grad()
def corrections(
    base: LoadedBase,
    layers: Mapping[str, LinearShape],
    batches: Sequence[Tensor],
    error: Callable[[str], Tensor],
    rank: int,
) -> Iterator[tuple[str, Factors]]:
    """Each layer's factors by its `error`, weighed by its inputs when `base` reads the batches."""
    for group, moment in input_moments(base, layers, batches):
        for name in group.names:
            yield name, correct(error(name), moment, rank)


@torch.no_grad()
def correct(error: Tensor, moment: Tensor, rank: int) -> Factors:
    """Factors of an error [out_features, in_features] under input moments [in, in]."""
    root = _root(moment.double())
    u, s, vh = torch.linalg.svd((error.double() @ root).float(), full_matrices=False)
    rows = (s[:rank, None] * vh[:rank]).double()
    return _balanced(
        torch.linalg.solve_triangular(root, rows, upper=False, left=False), u[:, :rank]
    )


def _balanced(a: Tensor, b: Tensor) -> Factors:
    """The optimizer moves all entries by the same amount: neither side should be the larger one."""
    scale = (b.norm(dim=0) / a.norm(dim=1).clamp_min(1e-30)).sqrt()
    return Factors((a * scale[:, None]).float(), (b / scale).float())


def _root(moment: Tensor) -> Tensor:
    """Lower triangular L with L L^T = R, R damped."""
    damping = DAMPING * moment.diagonal().mean().clamp_min(1e-12)
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    root: Tensor = torch.linalg.cholesky(moment + damping * identity)
    return root
