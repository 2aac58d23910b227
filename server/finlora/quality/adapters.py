"""Trains the adapters of an experiment, each once, into a registry of the experiment's own."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finlora.adapters.adapter import Adapter
from finlora.adapters.registry import AdapterRegistry
from finlora.evaluation.test_sets import row_facts
from finlora.quality.arms import Recipe
from finlora.quality.plan import Plan
from finlora.training.adapter_files import adapter_files
from finlora.training.allocator import keep_freed_memory
from finlora.training.config import TrainingConfig
from finlora.training.manifest import build_manifest
from finlora.training.preparation import Dataset, load_dataset
from finlora.training.trainer import Step, Trainer
from finlora.training.workshop import prepare

Report = Callable[[str], None]
STEPS_BETWEEN_REPORTS = 10
KEY_LENGTH = 12
WHERE = {"base_model", "dataset_path", "val_dataset_path", "checkpoint_steps", "eval_rows"}


@dataclass(frozen=True, slots=True)
class AdapterShop:
    """Gives the adapter of a recipe and a seed: from the registry, else trained now."""

    plan: Plan
    registry: AdapterRegistry
    base_fingerprint: str
    held_out: list[str]  # files of test rows
    report: Report

    def get(self, recipe: Recipe, seed: int) -> Adapter:
        """The adapter. Raises FinLoRAError."""
        config, dataset, name = self._job(recipe, seed)
        if self.registry.is_registered(name):
            return self.registry.resolve(name)
        self.report(f"training {name} on {len(dataset.split.train)} rows")
        return self._train(name, config, dataset)

    def has(self, recipe: Recipe, seed: int) -> bool:
        """Whether it is trained already."""
        return self.registry.is_registered(self._job(recipe, seed)[2])

    def _job(self, recipe: Recipe, seed: int) -> tuple[TrainingConfig, Dataset, str]:
        config = self.plan.training_config(recipe, seed, self.held_out)
        dataset = load_dataset(config, Path())
        return config, dataset, f"{recipe.name}-s{seed}-{self._key(config, dataset)}"

    def _train(self, name: str, config: TrainingConfig, dataset: Dataset) -> Adapter:
        keep_freed_memory()
        workshop = prepare(config, dataset.split, self.registry, device=self.plan.device)
        trainer = Trainer(
            workshop.base.model, workshop.layers, config, checkpointing=workshop.checkpointing
        )
        history = trainer.fit(
            lambda epoch: workshop.examples.of_epoch(epoch, config), on_step=self._tell
        )
        files = adapter_files(workshop.layers, config, workshop.base.spec.name)
        manifest = build_manifest(config, dataset, workshop, history)
        return self.registry.register(name, config.variant, files.config, files.weights, manifest)

    def _tell(self, step: Step) -> None:
        if step.number % STEPS_BETWEEN_REPORTS == 0 or step.number == step.num_steps:
            self.report(
                f"  step {step.number} of {step.num_steps}: loss {step.loss:.3f}, "
                f"{step.num_tokens / step.seconds:.0f} tokens/s"
            )

    def _key(self, config: TrainingConfig, dataset: Dataset) -> str:
        """A hash of everything that decides what is learned. Settings that are the trainer's own
        defaults are left out: a new one would otherwise make every adapter unknown."""
        facts = {
            "config": config.model_dump(exclude=WHERE, exclude_defaults=True),
            "rows": [row_facts(row) for row in dataset.split.train],
            "base": self.base_fingerprint,
        }
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
