"""One adapter of every kind that is served, made by PEFT itself."""

from pathlib import Path
from typing import Any

import torch

from tests.adapters.peft_folders import read_tensors, save_adapter, write_tensors

MLP = ["gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 8, "lora_alpha": 4, "use_rslora": True},
    "dora": {"r": 2, "lora_alpha": 4, "use_dora": True},
    "dora-attention": {"r": 16, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj"]},
    "patterns": {"rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.up_proj": 2},
                 "alpha_pattern": {"q_proj": 4}},
    "queries": {"r": 3, "target_modules": ["q_proj", "v_proj"]},
    "mlp": {"r": 32, "lora_alpha": 16, "target_modules": MLP},
    "lora-bf16": {"r": 5, "lora_alpha": 20},
}  # fmt: skip
IN_BFLOAT16 = ("lora-bf16",)  # is what they are stored in, as finlora-train does


def make_zoo(base: Path, folder: Path) -> dict[str, Path]:
    """A folder for each kind."""
    return {
        name: _tame(save_adapter(base, folder / name, seed=i, **options), name in IN_BFLOAT16)
        for i, (name, options) in enumerate(KINDS.items())
    }


def _tame(folder: Path, in_bfloat16: bool) -> Path:
    """Small updates, and DoRA magnitudes that are not the norms they start as."""
    generator = torch.Generator().manual_seed(7)
    tensors = read_tensors(folder)
    for key, tensor in tensors.items():
        if "lora_B" in key:
            tensor *= 0.3
        if "magnitude" in key:
            tensor *= 1 + 0.2 * torch.rand(tensor.shape, generator=generator)
    if in_bfloat16:
        tensors = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    write_tensors(folder, tensors)
    return folder
