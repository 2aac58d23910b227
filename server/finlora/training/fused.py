"""RMSNorm and gated SiLU as one operation each, with one backward pass: the same numbers.

Written as autograd has it, each is several operations that all keep what they read: on the default
base an eighth of what a step keeps for its backward pass.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finlora.training.recomputed import GatedSiLU, RMSNorm, compute

GATED = GatedSiLU()
MATCHING_ROWS = 3  # random ones, on which a replacement must agree with what it replaces


class FusedRMSNorm(nn.Module):
    """As Llama's."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.in_features = len(norm.weight)
        self.weight: Tensor = norm.weight
        self.eps: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> the same shape."""
        return compute(self.recipe, x)

    @property
    def recipe(self) -> RMSNorm:
        """How its value is made."""
        return RMSNorm(self.weight, self.eps)


class FusedMLP(nn.Module):
    """As Llama's; its layers keep their names, so adapters find them."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.in_features: int = mlp.gate_proj.in_features
        self.gate_proj: nn.Module = mlp.gate_proj
        self.up_proj: nn.Module = mlp.up_proj
        self.down_proj: nn.Module = mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> the same shape."""
        return self.down_proj(compute(GATED, self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-any-return]


# What a module must have to be tried.
_PARTS: dict[type[FusedRMSNorm | FusedMLP], set[str]] = {
    FusedRMSNorm: {"weight", "variance_epsilon"},
    FusedMLP: {"gate_proj", "up_proj", "down_proj", "act_fn"},
}


def fuse(model: PreTrainedModel) -> int:
    """Replace what agrees on random rows with one of the above; returns how many were.

    Others, Gemma's for instance, stay as they are. Weights must be frozen.
    """
    generator = torch.Generator().manual_seed(0)
    verdicts: dict[type[nn.Module], bool] = {}
    replaced = 0
    for name, module, replacement in list(_candidates(model)):
        if type(module) not in verdicts:
            rows = torch.randn(MATCHING_ROWS, replacement.in_features, generator=generator)
            rows = rows.to(model.device, model.dtype)
            verdicts[type(module)] = _agree(module, replacement, rows)
        if verdicts[type(module)]:
            model.set_submodule(name, replacement)
            replaced += 1
    return replaced


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, FusedRMSNorm | FusedMLP]]:
    for name, module in model.named_modules():
        for fused, parts in _PARTS.items():
            if all(hasattr(module, part) for part in parts):
                yield name, module, fused(module)


@torch.no_grad()
def _agree(one: nn.Module, other: nn.Module, rows: Tensor) -> bool:
    return torch.allclose(one(rows), other(rows), rtol=1e-3, atol=1e-5)
