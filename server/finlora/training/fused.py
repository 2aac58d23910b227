"""RMSNorm and gated SiLU as one operation each, with one backward pass: the same numbers.

Written as autograd has it, each is several operations that all keep what they read: on the default
base an eighth of what a step keeps for its backward pass.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from finlora.bases.replacement import replace_norms_and_mlps
from finlora.training.recomputed import GatedSiLU, RMSNorm, compute

GATED = GatedSiLU()


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


def fuse(model: PreTrainedModel) -> int:
    """Replace what agrees with one of the above; returns how many were. Weights must be frozen."""
    return replace_norms_and_mlps(model, FusedRMSNorm, FusedMLP)
