"""Experiment trackers, each imported only when it is asked for."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from finlora.errors import ConfigError


class Tracker(Protocol):
    """Where figures of a run go besides the log."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Figures of a step."""

    def close(self) -> None:
        """The run is over."""


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, name: str, config: dict[str, Any], folder: Path) -> None:
        import_module("tensorboard")
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(folder / f"{name}-tensorboard"))
        self._writer.add_text("config", str(config))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Figures of a step."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb; WANDB_* variables say where (WANDB_MODE=offline: on this disk)."""

    def __init__(self, name: str, config: dict[str, Any], folder: Path) -> None:
        self._run = import_module("wandb").init(
            project="finlora", name=name, config=config, dir=str(folder)
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Figures of a step."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Send or write what waits."""
        self._run.finish()


class MLflow:
    """A run of MLflow; MLFLOW_TRACKING_URI says where."""

    def __init__(self, name: str, config: dict[str, Any], folder: Path) -> None:
        self._mlflow = import_module("mlflow")
        self._mlflow.set_experiment("finlora")
        self._mlflow.start_run(run_name=name)
        self._mlflow.log_params({key: str(value)[:500] for key, value in config.items()})

    def log(self, step: int, values: dict[str, float]) -> None:
        """Figures of a step."""
        self._mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[str, dict[str, Any], Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def open_tracker(kind: str, name: str, config: dict[str, Any], folder: Path) -> Tracker:
    """Raises ConfigError when the tracker is not installed or cannot start."""
    try:
        return TRACKERS[kind](name, config, folder)
    except ModuleNotFoundError as error:
        raise ConfigError(f"--report-to {kind}: not installed (pip install {kind})") from error
    except Exception as error:  # whatever a tracker raises, a user should read one line
        raise ConfigError(f"--report-to {kind} cannot start: {error}") from error
