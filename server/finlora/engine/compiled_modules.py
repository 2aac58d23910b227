"""RMSNorm and gated MLPs on a CPU by our own kernels, one call for six of torch's and for two.

In a decode step on a small base those operations cost by their number, in a prompt by how often
each row is written and read again.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finlora.bases.replacement import replace_norms_and_mlps
from finlora.native import library
from finlora.native.elementwise import gated_silu, rms_norm
from finlora.native.library import DTYPES, LANES


class CompiledRMSNorm(nn.Module):
    """As Llama's."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.in_features = len(norm.weight)
        self.weight: Tensor = norm.weight
        self.eps: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> the same shape."""
        return rms_norm(x, self.weight, self.eps)


class CompiledMLP(nn.Module):
    """As Llama's; its layers keep their names."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.in_features: int = mlp.gate_proj.in_features
        self.gate_proj: nn.Module = mlp.gate_proj
        self.up_proj: nn.Module = mlp.up_proj
        self.down_proj: nn.Module = mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> the same shape."""
        return self.down_proj(gated_silu(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-any-return]


def compile_modules(model: PreTrainedModel) -> int:
    """Replace what agrees with one of the above; how many were. Before siblings are joined."""
    if model.device.type != "cpu" or model.dtype not in DTYPES or library.obstacle() is not None:
        return 0

    def norm(module: Any) -> CompiledRMSNorm | None:
        fits = module.weight.dtype is model.dtype and len(module.weight) % LANES == 0
        return CompiledRMSNorm(module) if fits else None

    with torch.inference_mode():
        return replace_norms_and_mlps(model, norm, _mlp)


def _mlp(module: Any) -> CompiledMLP | None:
    return CompiledMLP(module) if module.up_proj.out_features % LANES == 0 else None
