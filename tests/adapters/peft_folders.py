"""Adapter folders written by PEFT itself, and ways to damage them."""

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, save
from transformers import AutoModelForCausalLM

from finlora.adapters.adapter import CONFIG_FILE, WEIGHTS_FILE

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(base: Path, folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """A random LoRA adapter for a base folder, as plain PEFT saves it."""
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL_LINEAR,
        "task_type": "CAUSAL_LM",
    }
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers' own, on PEFT's behalf
        torch.manual_seed(seed)
        config = LoraConfig(**(settings | {"init_lora_weights": False} | options))
        get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def logits(base: Path, adapter: Path) -> torch.Tensor:
    """What PEFT computes with an adapter folder, for a fixed prompt."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
        result: torch.Tensor = tuned(torch.arange(3, 40).unsqueeze(0)).logits
    return result


def edit_config(folder: Path, **fields: Any) -> None:
    """Overwrite fields of adapter_config.json."""
    file = folder / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_bytes()) | fields), "utf-8")


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor by its key."""
    return dict(load((folder / WEIGHTS_FILE).read_bytes()))


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the weights."""
    (folder / WEIGHTS_FILE).write_bytes(save(tensors))


def raw_safetensors(header: object, body: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def key_of(module: str, role: str) -> str:
    """PEFT's key of a tensor; role is lora_A, lora_B or lora_magnitude_vector."""
    suffix = "" if role == "lora_magnitude_vector" else ".weight"
    return f"base_model.model.{module}.{role}{suffix}"
