"""One training run, from configuration to a checked result; registering it is a separate act."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finlora.adapters.adapter import MANIFEST_FILE, Adapter, Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.errors import FinLoRAError
from finlora.training.adapter_files import AdapterFiles, adapter_files
from finlora.training.allocator import keep_freed_memory
from finlora.training.card import model_card
from finlora.training.checkpoint import Checkpoint, Checkpoints
from finlora.training.config import TrainingConfig
from finlora.training.manifest import build_manifest
from finlora.training.preparation import Dataset, load_dataset
from finlora.training.progress import Progress
from finlora.training.trainer import Step, Trainer, TrainingHistory
from finlora.training.validation import validate
from finlora.training.workshop import Workshop, prepare


@dataclass(frozen=True, slots=True)
class Order:
    """What the user asked for."""

    name: str
    config: TrainingConfig
    folder: Path  # relative data paths count from here
    device: str
    registry: AdapterRegistry
    command: str  # for the model card
    checkpoints: Path  # folder of this name's checkpoints
    output: Path | None = None  # where the adapter is kept besides the registry
    resume: bool = False
    stopped: Callable[[], bool] = lambda: False  # whether to save and end after this step


class RunStoppedError(FinLoRAError):
    """The user stopped the run; it can go on."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run made, complete and checked, not yet registered."""

    files: AdapterFiles
    manifest: Manifest
    extra_files: dict[str, bytes]

    def save(self, folder: Path) -> None:
        """Write a PEFT folder with everything that is known."""
        self.files.save(folder)
        for name, content in self.extra_files.items():
            (folder / name).write_bytes(content)
        (folder / MANIFEST_FILE).write_text(self.manifest.model_dump_json(indent=1) + "\n", "utf-8")

    def register(self, order: Order) -> Adapter:
        """Hand it to the registry."""
        return order.registry.register(
            order.name,
            order.config.variant,
            self.files.config,
            self.files.weights,
            self.manifest,
            self.extra_files,
        )


def run(order: Order, progress: Progress) -> Result:
    """Train and validate; nothing is registered yet. Raises FinLoRAError, also RunStoppedError."""
    config = order.config
    keep_freed_memory()
    dataset = load_dataset(config, order.folder)
    progress.dataset(dataset)
    progress.phase(f"loading {config.base_model} in {config.quantization}")
    workshop = prepare(config, dataset.split.train, order.registry, device=order.device)
    progress.workshop(workshop)
    history = _train(order, dataset, workshop, progress)
    progress.trained(history)
    return _finish(order, dataset, workshop, history, progress)


def describe(order: Order) -> dict[str, Any]:
    """What `run` would do, without doing it. Raises FinLoRAError."""
    dataset = load_dataset(order.config, order.folder)
    workshop = prepare(order.config, dataset.split.train, order.registry, device=order.device)
    first = workshop.examples.whole[0]
    lengths = sorted(example.num_tokens for example in workshop.examples.whole)
    return {
        "config": order.config.model_dump(),
        "variant": order.config.variant,
        "labels": dataset.labels,
        "num_train_rows": len(lengths),
        "num_valid_rows": len(dataset.split.valid),
        "num_duplicates_dropped": dataset.split.num_duplicates,
        "num_rows_too_long": workshop.examples.num_too_long,
        "num_trainable_parameters": workshop.num_trainable,
        "tokens_per_row": {
            "median": lengths[len(lengths) // 2],
            "longest": lengths[-1],
        },
        "tokens_in_all": sum(lengths) * order.config.num_epochs,
        "first_row": {
            "context": dataset.split.train[0].context,
            "context_token_ids": first.context,
            "target_token_ids": first.target,
        },
    }


def _train(
    order: Order, dataset: Dataset, workshop: Workshop, progress: Progress
) -> TrainingHistory:
    config = order.config
    trainer = Trainer(workshop.base.model, workshop.layers, config)
    checkpoints = Checkpoints(order.checkpoints, _run_hash(config, dataset, workshop))
    if not order.resume:
        checkpoints.clear()
    elif found := checkpoints.newest(progress.phase):
        trainer.restore(found.steps, found.tensors)
        progress.phase(f"going on after step {len(found.steps)}")
    else:
        progress.phase("no checkpoint to resume from: starting anew")

    def on_step(step: Step) -> None:
        progress.step(step)
        stopped = order.stopped()
        if stopped or step.number % config.checkpoint_steps == 0:
            _save(checkpoints, trainer, progress)
        if stopped:
            raise RunStoppedError(
                f"stopped after step {step.number} of {step.num_steps}; --resume goes on"
            )

    return trainer.fit(lambda epoch: workshop.examples.of_epoch(epoch, config), on_step=on_step)


def _save(checkpoints: Checkpoints, trainer: Trainer, progress: Progress) -> None:
    """A full disk costs the checkpoint, not the run."""
    try:
        checkpoints.save(Checkpoint(trainer.history.steps, trainer.tensors()))
    except OSError as error:
        progress.phase(f"no checkpoint could be written: {error}")


def _run_hash(config: TrainingConfig, dataset: Dataset, workshop: Workshop) -> str:
    """SHA-256 over everything that decides what is learned."""
    words = {"description", "licence", "sources", "task", "checkpoint_steps"}
    facts = {
        "config": config.model_dump(exclude={"dataset_path", "val_dataset_path", *words}),
        "data": [source["sha256"] for source in dataset.sources()],
        "base": workshop.base.spec.fingerprint,
        "initial_adapter": workshop.initial_adapter,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _finish(
    order: Order,
    dataset: Dataset,
    workshop: Workshop,
    history: TrainingHistory,
    progress: Progress,
) -> Result:
    config, spec = order.config, workshop.base.spec
    files = adapter_files(workshop.layers, config, spec.name)
    if order.output is not None:
        files.save(order.output)  # before the scores, which take minutes
    manifest = build_manifest(config, dataset, workshop, history)
    progress.phase(f"scoring {len(dataset.split.valid)} validation rows, adapter and bare base")
    scores = validate(
        files, manifest, config, dataset.split.valid, workshop.encoder, device=order.device
    )
    progress.scores(scores)
    manifest = manifest.model_copy(update={"scores": scores})
    metrics = {"scores": scores, "steps": [asdict(step) for step in history.steps]}
    extra_files = {
        "README.md": model_card(order.name, config, manifest, order.command).encode(),
        "metrics.json": (json.dumps(metrics, indent=1) + "\n").encode(),
    }
    result = Result(files, manifest, extra_files)
    if order.output is not None:
        result.save(order.output)
    return result
