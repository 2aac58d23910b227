"""Puts modules of our own in place of a model's norms and MLPs, where both compute the same.

What computes the same is found by trying: names of classes tell little, there are hundreds.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Random rows of these sizes are tried: where a gate is bent, and where a clamp would show.
MAGNITUDES = (0.1, 1.0, 10.0)
MAX_ERRORS = {torch.float32: 1e-3}  # of a row's length
MAX_ERROR_IN_16_BITS = 1e-2
RMS_NORM = {"weight", "variance_epsilon"}
GATED_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class Replacement(Protocol):
    """A module, for rows [..., in_features]."""

    in_features: int

    def __call__(self, x: Tensor) -> Tensor: ...


Maker = Callable[[Any], Replacement | None]  # None: it cannot take that module's place


def replace_norms_and_mlps(model: PreTrainedModel, norm: Maker, mlp: Maker) -> int:
    """Replace each of a class whose first module agrees with its replacement; how many were.

    Others, Gemma's for instance, stay as they are.
    """
    generator = torch.Generator().manual_seed(0)
    verdicts: dict[type[nn.Module], bool] = {}
    replaced = 0
    for name, module, replacement in list(_candidates(model, norm, mlp)):
        if type(module) not in verdicts:
            rows = torch.randn(len(MAGNITUDES), replacement.in_features, generator=generator)
            rows *= torch.tensor(MAGNITUDES)[:, None]
            verdicts[type(module)] = _agree(module, replacement, rows.to(model.device, model.dtype))
        if verdicts[type(module)]:
            model.set_submodule(name, replacement)  # type: ignore[arg-type]
            replaced += 1
    return replaced


def _candidates(
    model: nn.Module, norm: Maker, mlp: Maker
) -> Iterator[tuple[str, nn.Module, Replacement]]:
    for name, module in model.named_modules():
        for parts, maker in ((RMS_NORM, norm), (GATED_MLP, mlp)):
            if all(hasattr(module, part) for part in parts):
                replacement = maker(module)
                if replacement is not None:
                    yield name, module, replacement


@torch.no_grad()
def _agree(module: nn.Module, replacement: Replacement, rows: Tensor) -> bool:
    expected: Tensor = module(rows).float()
    error = (replacement(rows).float() - expected).norm(dim=-1)
    limit = MAX_ERRORS.get(rows.dtype, MAX_ERROR_IN_16_BITS)
    return bool((error <= limit * expected.norm(dim=-1)).all())  # NaN does not agree
