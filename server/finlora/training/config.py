"""What one training run does: FinLoRA's keys and ours, from a JSON file of named configurations."""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
)

from finlora.config import DEFAULT_BASE, Quantization
from finlora.errors import ConfigError
from finlora.prompts import PromptTemplate

SHIPPED_CONFIGS = Path(__file__).parent / "finetune_configs.json"
ALL_LINEAR: Literal["all-linear"] = "all-linear"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class DataSource(BaseModel):
    """Where training data comes from, for the manifest and the model card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    licence: str
    url: str | None = None


class TrainingConfig(BaseModel):
    """One run. The first block is FinLoRA's own schema; everything else is optional."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: str = DEFAULT_BASE
    dataset_path: Annotated[list[str], BeforeValidator(_as_list)] = []
    lora_r: Annotated[int, Field(ge=1, le=512)] = 8
    lora_alpha: Annotated[float, Field(gt=0, le=65536)] = 16.0
    quant_bits: Literal[4, 8, 16] = 4
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    num_epochs: PositiveInt = 4
    batch_size: PositiveInt = 8
    gradient_accumulation_steps: PositiveInt = 1
    peft_use_dora: bool = False
    peft_use_rslora: bool = False

    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_target_modules: list[str] | Literal["all-linear"] = ALL_LINEAR
    init_lora_weights: Literal["default", "gaussian"] = "default"
    max_seq_len: PositiveInt = 1024
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of all steps")] = 0.05
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    initial_adapter: Annotated[
        str | None, Field(description="registered adapter of the same kind to start from")
    ] = None
    checkpoint_steps: PositiveInt = 50
    seed: Annotated[int, Field(ge=0)] = 0
    max_rows: Annotated[PositiveInt | None, Field(description="train on a sample")] = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    val_dataset_path: Annotated[list[str], BeforeValidator(_as_list)] = []
    strip_probability: Annotated[
        float, Field(ge=0, le=1, description="rows without the prompt's trailing space")
    ] = 0.25
    label_names: list[str] | None = None
    prompt_template: str | None = None
    task: str | None = None
    description: str | None = None
    licence: str | None = None
    sources: list[DataSource] = []

    @property
    def quantization(self) -> Quantization:
        """How the base is stored while training, and is to be stored when serving."""
        return {4: Quantization.NF4, 8: Quantization.INT8, 16: Quantization.NONE}[self.quant_bits]

    @property
    def variant(self) -> str:
        """FinLoRA's name for bits, rank and method, such as `8bits_r8_dora`."""
        bits = "fp16" if self.quant_bits == 16 else f"{self.quant_bits}bits"
        method = ("_rslora" if self.peft_use_rslora else "") + (
            "_dora" if self.peft_use_dora else ""
        )
        return f"{bits}_r{self.lora_r}{method}"

    @property
    def template(self) -> PromptTemplate | None:
        """The prompt the rows were written with, when the configuration says it."""
        return None if self.prompt_template is None else PromptTemplate(self.prompt_template)


def load_config(name: str, file: Path, overrides: Mapping[str, str]) -> TrainingConfig:
    """The configuration of that name with `key=value` settings on top.

    Values of settings are JSON where they can be, else text. Raises ConfigError.
    """
    configs = read_configs(file)
    if name not in configs:
        raise ConfigError(f"{file} has no configuration {name!r}{_nearest(name, configs)}")
    fields = {**configs[name], **{key: _value(text) for key, text in overrides.items()}}
    return _parse(name, fields)


def read_configs(file: Path) -> dict[str, dict[str, Any]]:
    """Every configuration of a file, as written. Raises ConfigError."""
    try:
        configs = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error
    if not isinstance(configs, dict) or not all(isinstance(c, dict) for c in configs.values()):
        raise ConfigError(f"{file} must be an object of named configurations")
    return configs


def dataset_files(paths: Iterable[str], folder: Path) -> list[Path]:
    """Data files; relative paths count from the configuration's folder. Raises ConfigError."""
    files = [folder / Path(path).expanduser() for path in paths]
    for file in files:
        if not file.is_file():
            raise ConfigError(f"there is no data file {file}")
    return files


def _parse(name: str, fields: Mapping[str, Any]) -> TrainingConfig:
    for key in fields:
        if key not in TrainingConfig.model_fields:
            raise ConfigError(
                f"{name}: unknown key {key!r}{_nearest(key, TrainingConfig.model_fields)}"
            )
    try:
        return TrainingConfig.model_validate(fields)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{name}: " + "; ".join(lines)) from error


def _nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
