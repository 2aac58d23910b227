"""What one adapter version is: its LoRA configuration and its manifest. No torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MANIFEST_FILE = "manifest.json"
NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,95}"


class LoRAConfig(BaseModel):
    """The part of PEFT's adapter_config.json that changes what the adapter computes."""

    model_config = ConfigDict(frozen=True)

    r: Annotated[int, Field(ge=1)]
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}


class TrainingQuantization(BaseModel):
    """The quantisation an adapter was trained on."""

    model_config = ConfigDict(frozen=True)

    type: Literal["nf4", "fp4", "int8", "none", "unknown"] = "unknown"
    double_quant: bool | None = None
    block_size: int | None = None
    compute_dtype: str | None = None


class Manifest(BaseModel):
    """What a PEFT folder does not say. None means: not known (the adapter was made elsewhere)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    base_name: str | None = None
    base_fingerprint: str | None = None
    tokenizer_hash: str | None = None
    prompt_format_hash: str | None = None
    quantization: TrainingQuantization = TrainingQuantization()
    task: str | None = None
    labels: list[str] | None = None
    prompt_template: str | None = None
    eos_token_ids: list[int] | None = None
    temperature: float | None = None
    training: dict[str, Any] | None = None
    scores: dict[str, Any] | None = None
    data: list[dict[str, Any]] | None = None
    licence: str | None = None
    created: str | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """One immutable version of a registered adapter; `digest` identifies it everywhere."""

    name: str
    variant: str
    digest: str  # SHA-256, hex
    folder: Path
    config: LoRAConfig
    manifest: Manifest
