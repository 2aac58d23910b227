"""What one training run does: FinLoRA's keys and ours, their defaults and bounds."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from finlora.config import DEFAULT_BASE, Quantization
from finlora.prompts import PromptTemplate

MAX_RANK = 512
MAX_SEED = 2**32 - 1  # what is derived from it for every step must fit 64 bits
ALL_LINEAR: Literal["all-linear"] = "all-linear"


Init = Literal["default", "gaussian", "orthogonal", "eva", "qera"]
Optimizer = Literal["paged_adamw_8bit", "adamw_8bit", "adamw"]
Metric = Literal["loss", "accuracy", "macro_f1"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_texts(value: Any) -> Any:
    """Column values as a table writes them: 0 and "0" are the same."""
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value


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
    lora_r: Annotated[int, Field(ge=1, le=MAX_RANK)] = 8
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
    init_lora_weights: Annotated[
        Init, BeforeValidator(lambda value: "default" if value is True else value)
    ] = "default"
    max_seq_len: PositiveInt = 1024
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of all steps")] = 0.05
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    optimizer: Annotated[Optimizer, Field(description="8-bit and paged state are for CUDA")] = (
        "paged_adamw_8bit"
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    initial_adapter: Annotated[
        str | None, Field(description="registered adapter of the same kind to start from")
    ] = None
    base_revision: Annotated[
        str | None, Field(description="branch, tag or commit of a hub base")
    ] = None
    group_by_length: bool = True
    gradient_checkpointing: Annotated[
        bool | Literal["auto"], Field(description="auto: where memory would not do")
    ] = "auto"
    class_weights: Annotated[
        Literal["none", "balanced"] | dict[str, PositiveFloat],
        Field(description="of rows by their label"),
    ] = "none"
    balanced_sampling: Annotated[bool, Field(description="every label as often in an epoch")] = (
        False
    )
    eval_steps: Annotated[
        NonNegativeInt | None,
        Field(description="steps between evaluations; none: epochs' ends; 0: never"),
    ] = None
    eval_rows: Annotated[PositiveInt, Field(description="validation rows of an evaluation")] = 300
    eval_metric: Metric = "loss"
    early_stopping: Annotated[
        PositiveInt | None, Field(description="evaluations without a better one before the end")
    ] = None
    checkpoint_steps: PositiveInt = 50
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    max_rows: Annotated[PositiveInt | None, Field(description="train on a sample")] = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    val_dataset_path: Annotated[list[str], BeforeValidator(_as_list)] = []
    strip_probability: Annotated[
        float, Field(ge=0, le=1, description="rows without the prompt's trailing space")
    ] = 0.25
    text_column: str | None = None
    label_column: str | None = None
    label_values: Annotated[
        dict[str, str],
        BeforeValidator(_as_texts),
        Field(description="value in the label column -> answer"),
    ] = {}
    label_names: list[str] | None = None
    prompt_template: str | None = None
    task: str | None = None
    description: str | None = None
    licence: str | None = None
    sources: list[DataSource] = []

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.init_lora_weights == "orthogonal" and self.lora_r % 2:
            raise ValueError("lora_r must be even for init_lora_weights=orthogonal")
        if self.init_lora_weights == "qera" and self.quant_bits != 4:
            raise ValueError("init_lora_weights=qera corrects NF4: quant_bits must be 4")
        if self.early_stopping is not None and self.eval_steps == 0:
            raise ValueError("early_stopping needs evaluations: eval_steps must not be 0")
        if self.initial_adapter is not None and self.init_lora_weights != "default":
            raise ValueError("initial_adapter and init_lora_weights both say where to start")
        return self

    @property
    def base_reference(self) -> str:
        """The base with its revision, as `load_base` takes it."""
        return self.base_model + (f"@{self.base_revision}" if self.base_revision else "")

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
