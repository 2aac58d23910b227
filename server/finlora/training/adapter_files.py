"""What was learned, as the files of a plain PEFT folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save

from finlora.adapters.adapter import CONFIG_FILE, WEIGHTS_FILE
from finlora.adapters.validation import KEY_PREFIX
from finlora.training.config import ALL_LINEAR, TrainingConfig
from finlora.training.lora_layer import TrainableLoRA


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """adapter_config.json and adapter_model.safetensors."""

    config: bytes
    weights: bytes

    def save(self, folder: Path) -> None:
        """Write them into a folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_bytes(self.config)
        (folder / WEIGHTS_FILE).write_bytes(self.weights)


def adapter_files(
    layers: Mapping[str, TrainableLoRA], config: TrainingConfig, base_name: str
) -> AdapterFiles:
    """The layers as they stand, their weights in bfloat16."""
    tensors = {
        f"{KEY_PREFIX}{name}.{part}": tensor.detach().to(torch.bfloat16).cpu().contiguous()
        for name, layer in layers.items()
        for part, tensor in layer.tensors().items()
    }
    settings = _peft_config(layers, config, base_name)
    return AdapterFiles(
        (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode(),
        save(tensors, metadata={"format": "pt"}),
    )


def _peft_config(
    layers: Mapping[str, TrainableLoRA], config: TrainingConfig, base_name: str
) -> dict[str, Any]:
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
        r=config.lora_r,
        lora_alpha=_as_written(config.lora_alpha),
        lora_dropout=config.lora_dropout,
        use_rslora=config.peft_use_rslora,
        use_dora=config.peft_use_dora,
        init_lora_weights="gaussian" if config.init_lora_weights == "gaussian" else True,
        target_modules=_targets(layers, config),
    ).to_dict()
    return {key: sorted(v) if isinstance(v, set) else v for key, v in settings.items()}


def _targets(layers: Mapping[str, TrainableLoRA], config: TrainingConfig) -> list[str]:
    """PEFT matches the ends of names, as we do; only our word for "all" is not its own."""
    if config.lora_target_modules == ALL_LINEAR:
        return sorted({name.rpartition(".")[2] for name in layers})
    return sorted(config.lora_target_modules)


def _as_written(alpha: float) -> Any:
    """PEFT's own files hold whole numbers as such."""
    return int(alpha) if alpha.is_integer() else alpha
