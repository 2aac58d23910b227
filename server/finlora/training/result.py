"""What a run made, complete and judged, as files; not yet registered."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from finlora.adapters.adapter import MANIFEST_FILE, Adapter, Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.training.adapter_files import AdapterFiles
from finlora.training.card import model_card
from finlora.training.config import TrainingConfig
from finlora.training.gate import Verdict
from finlora.training.loss_curve import loss_curve
from finlora.training.preparation import Dataset
from finlora.training.trainer import TrainingHistory

# Of steps and of evaluations in metrics.json, which a registry takes up to 1 MiB. The log has all.
MAX_POINTS = 1000
PATHS = {"dataset_path", "val_dataset_path"}  # the trainer's own business

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """An adapter, what is known of it, and whether it is to be served."""

    files: AdapterFiles
    manifest: Manifest
    extra_files: dict[str, bytes]
    verdict: Verdict

    def save(self, folder: Path) -> None:
        """Write a PEFT folder with everything that is known."""
        self.files.save(folder)
        for name, content in self.extra_files.items():
            (folder / name).write_bytes(content)
        (folder / MANIFEST_FILE).write_text(self.manifest.model_dump_json(indent=1) + "\n", "utf-8")

    def register(self, registry: AdapterRegistry, name: str, variant: str) -> Adapter:
        """Hand it to the registry; served from now on only when the verdict says so."""
        return registry.register(
            name,
            variant,
            self.files.config,
            self.files.weights,
            self.manifest,
            self.extra_files,
            promote=self.verdict.promoted,
        )


def extra_files(
    name: str,
    config: TrainingConfig,
    manifest: Manifest,
    command: str,
    dataset: Dataset,
    history: TrainingHistory,
    verdict: Verdict,
) -> dict[str, bytes]:
    """Model card, resolved configuration, metrics, and the loss curve where it can be drawn."""
    metrics = {
        "scores": manifest.scores,
        "gate": verdict.as_dict(),
        "rows_by_label": dataset.label_counts(),
        "evaluations": [asdict(found) for found in _thinned(history.evaluations)],
        "steps": [asdict(step) for step in _thinned(history.steps)],
    }
    files = {
        "README.md": model_card(name, config, manifest, command).encode(),
        "metrics.json": _json(metrics),
        "training_config.json": _json({name: config.model_dump(exclude=PATHS)}),
    }
    curve = loss_curve(history, config.eval_metric)
    return files if curve is None else files | {"loss_curve.png": curve}


def _thinned(points: Sequence[T]) -> Sequence[T]:
    """Evenly spread, the last among them."""
    every = math.ceil(len(points) / MAX_POINTS)
    return points[(len(points) - 1) % every :: every] if points else points


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
