"""Tells the user what a run is doing, in plain lines."""

import sys
import time
from collections.abc import Callable
from typing import Any

from finlora.training.preparation import Dataset
from finlora.training.trainer import Step, TrainingHistory
from finlora.training.workshop import Workshop

SECONDS_BETWEEN_LINES = 10


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Progress:
    """One line for each phase, and now and then one for the steps."""

    def __init__(self, write: Callable[[str], None] = _to_stderr) -> None:
        self.phase = write
        self._last_line = 0.0
        self._seconds = 0.0  # in steps so far

    def dataset(self, dataset: Dataset) -> None:
        """What was read."""
        split = dataset.split
        self.phase(
            f"{len(split.train)} rows to train on, {len(split.valid)} to validate with, "
            f"{split.num_duplicates} duplicates dropped; "
            f"labels: {', '.join(dataset.labels) or 'none, free text'}"
        )

    def workshop(self, workshop: Workshop) -> None:
        """What will be learned."""
        self.phase(f"{workshop.num_trainable:,} parameters in {len(workshop.layers)} layers")
        if workshop.examples.num_too_long:
            self.phase(
                f"{workshop.examples.num_too_long} rows are longer than max_seq_len: left out"
            )

    def step(self, step: Step) -> None:
        """A line for the first and the last step, and every few seconds."""
        self._seconds += step.seconds
        now = time.monotonic()
        if 1 < step.number < step.num_steps and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = (step.num_steps - step.number) * self._seconds / step.number
        self.phase(
            f"step {step.number}/{step.num_steps}  loss {step.loss:.4f}  "
            f"lr {step.learning_rate:.2e}  {step.num_tokens / step.seconds:.0f} tokens/s  "
            f"about {left / 60:.1f} min left"
        )

    def trained(self, history: TrainingHistory) -> None:
        """How fast it was."""
        self.phase(
            f"{history.num_tokens:,} tokens trained on, {history.tokens_per_second:.0f} tokens/s"
        )

    def scores(self, scores: dict[str, Any]) -> None:
        """How good it is."""
        if "loss" in scores:
            self.phase(
                f"loss {scores['loss']:.3f}, of the bare base {scores['bare_base_loss']:.3f}"
            )
        for key, found in scores.items():
            if isinstance(found, dict) and "accuracy" in found:
                self.phase(
                    f"{key}: accuracy {found['accuracy']:.3f}, macro F1 {found['macro_f1']:.3f} "
                    f"({found['num_rows']} rows)"
                )
