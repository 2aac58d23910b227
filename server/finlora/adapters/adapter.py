"""What one adapter version is: its LoRA configuration and its manifest. No torch here."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from finlora.prompts import INPUT_FIELD

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MANIFEST_FILE = "manifest.json"
NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,95}"
VARIANT_PATTERN = r"[a-z0-9][a-z0-9_-]{0,63}"

Rank = Annotated[int, Field(ge=1, le=65536)]
Alpha = Annotated[float, Field(gt=0, le=65536, allow_inf_nan=False)]


def _check_labels(labels: list[str]) -> list[str]:
    if len(labels) < 2 or not all(labels) or len(set(labels)) != len(labels):
        raise ValueError("must be two or more different texts")
    return labels


def _check_template(template: str) -> str:
    if template.count(INPUT_FIELD) != 1:
        raise ValueError(f"must contain {INPUT_FIELD} exactly once")
    return template


class LoRAConfig(BaseModel):
    """The part of PEFT's adapter_config.json that changes what the adapter computes."""

    model_config = ConfigDict(frozen=True, strict=True)

    r: Rank
    lora_alpha: Alpha
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Rank] = {}
    alpha_pattern: dict[str, Alpha] = {}


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
    labels: Annotated[list[str], AfterValidator(_check_labels)] | None = None
    prompt_template: Annotated[str, AfterValidator(_check_template)] | None = None
    eos_token_ids: list[int] | None = None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
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

    @property
    def reference(self) -> str:
        """The name that always means this version."""
        return f"{self.name}@{self.digest[:12]}"


def content_digest(config: bytes, weights: bytes, manifest: Manifest) -> str:
    """SHA-256 over everything that changes an answer; scores and descriptions stay outside."""
    answers = manifest.model_dump(
        include={"labels", "prompt_template", "eos_token_ids", "temperature"}, exclude_none=True
    )
    digest = hashlib.sha256(b"finlora adapter 1\n")
    for part in (config, weights, json.dumps(answers, sort_keys=True).encode()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a configuration or manifest, in one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
