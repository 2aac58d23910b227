"""What the user asked a run for, and whether that can be had."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from finlora.adapters.adapter import Manifest, first_problem
from finlora.adapters.registry import AdapterRegistry
from finlora.errors import ConfigError
from finlora.training.config import TrainingConfig
from finlora.training.gate import GateRules
from finlora.training.preparation import Dataset


@dataclass(frozen=True, slots=True)
class Order:
    """What the user asked for."""

    name: str
    config: TrainingConfig
    folder: Path  # relative data paths count from here
    device: str  # auto, cpu or cuda
    registry: AdapterRegistry
    command: str  # for the model card
    checkpoints: Path  # folder of this name's alone
    output: Path | None = None  # where the adapter is kept besides the registry
    registered: bool = True
    resume: bool = False
    rules: GateRules = field(default_factory=GateRules)
    stopped: Callable[[], bool] = lambda: False  # whether to save and end after this step
    threads: int = 0  # 0: physical cores


def check_order(order: Order, dataset: Dataset) -> None:
    """Whatever would fail after hours of training fails now."""
    if order.registered:
        base = Path(order.config.base_model).name
        order.registry.check_name(order.name, order.config.variant, base)
    if order.rules.min_accuracy is not None and not dataset.labels:
        raise ConfigError("--min-accuracy needs labels; the answers here are free text")
    if order.config.eval_metric != "loss" and not dataset.labels:
        raise ConfigError("eval_metric=loss is the only one for free answers")
    _check_manifest(order.config, dataset)
    if order.output is not None:
        _make_folder(order.output)


def _check_manifest(config: TrainingConfig, dataset: Dataset) -> None:
    try:
        Manifest(labels=dataset.labels or None, prompt_template=config.prompt_template)
    except ValidationError as error:
        raise ConfigError(f"such an adapter is not served: {first_problem(error)}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be written: {error.strerror}") from error
