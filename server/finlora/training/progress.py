"""Tells what a run is doing: to whoever watches, to the log, to trackers."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import psutil
import torch

from finlora.training.config import Metric
from finlora.training.display import PlainView, Snapshot, View
from finlora.training.evaluation import Evaluation
from finlora.training.event_log import EventLog
from finlora.training.preparation import Dataset
from finlora.training.trackers import Tracker
from finlora.training.trainer import Step, TrainingHistory
from finlora.training.workshop import Workshop


class Progress:
    """One method for each thing that happens."""

    def __init__(
        self,
        view: View | None = None,
        log: EventLog | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._view = PlainView() if view is None else view
        self._log = log
        self._trackers = list(trackers)
        self._seconds = 0.0  # in steps so far
        self._num_steps = 0
        self._evaluation: Evaluation | None = None

    def phase(self, line: str) -> None:
        """Something a user wants to know."""
        self._view.line(line)
        self._write("phase", {"text": line})

    def dataset(self, dataset: Dataset) -> None:
        """What was read, and how the labels fell on both sides of the split."""
        split, counts = dataset.split, dataset.label_counts()
        self.phase(
            f"{len(split.train)} rows to train on, {len(split.valid)} to validate with, "
            f"{split.num_duplicates} duplicates dropped; "
            f"labels: {', '.join(dataset.labels) or 'none, free text'}"
        )
        for label, sides in counts.items():
            shares = (sides["train"] / len(split.train), sides["valid"] / len(split.valid))
            self.phase(
                f"  {label}: {sides['train']} ({shares[0]:.1%}) to train on, "
                f"{sides['valid']} ({shares[1]:.1%}) to validate with"
            )
        if split.num_contradictions:
            self.phase(
                f"{split.num_contradictions} questions stand there with several answers: the first "
                "of each is used"
            )

    def workshop(self, workshop: Workshop) -> None:
        """What will be learned."""
        self.phase(f"{workshop.num_trainable:,} parameters in {len(workshop.layers)} layers")
        num_too_long = workshop.examples.num_too_long + workshop.valid.num_too_long
        if num_too_long:
            self.phase(f"{num_too_long} rows are longer than max_seq_len: left out")
        if workshop.checkpointing:
            self.phase("gradient checkpointing: activations are computed again to save memory")

    def step(self, step: Step) -> None:
        """One optimizer step."""
        self._seconds += step.seconds
        self._num_steps += 1
        left = (step.num_steps - step.number) * self._seconds / self._num_steps
        self._view.step(Snapshot(step, left, memory_bytes(), self._evaluation))
        self._write("step", asdict(step))
        self._track(
            step.number,
            {
                "train/loss": step.loss,
                "train/learning_rate": step.learning_rate,
                "train/grad_norm": step.grad_norm,
                "train/tokens_per_second": step.num_tokens / step.seconds,
            },
        )

    def evaluation(self, evaluation: Evaluation) -> None:
        """What the validation rows said."""
        self._evaluation = evaluation
        self._view.line(f"after step {evaluation.step}: {describe(evaluation)}")
        self._write("evaluation", asdict(evaluation))
        found = {"loss": evaluation.loss, "accuracy": evaluation.accuracy}
        found["macro_f1"] = evaluation.macro_f1
        values = {f"valid/{key}": value for key, value in found.items() if value is not None}
        self._track(evaluation.step, values)

    def trained(self, history: TrainingHistory, metric: Metric) -> None:
        """How fast it was, and which weights are kept."""
        self.phase(
            f"{history.num_tokens:,} tokens trained on, {history.tokens_per_second:.0f} tokens/s"
        )
        last = history.steps[-1] if history.steps else None
        if last is not None and last.number < last.num_steps:
            self.phase(f"stopped early: {history.num_since_best(metric)} evaluations no better")
        if (best := history.best(metric)) is not None:
            self.phase(f"kept: the weights after step {best.step}, {describe(best)}")

    def scores(self, scores: dict[str, Any]) -> None:
        """How good it is."""
        self._write("scores", scores)
        if "loss" in scores:
            self._view.line(
                f"loss {scores['loss']:.3f}, of the bare base {scores['bare_base_loss']:.3f}"
            )
        for key, found in scores.items():
            if isinstance(found, dict) and "accuracy" in found:
                self._view.line(
                    f"{key}: accuracy {found['accuracy']:.3f}, macro F1 {found['macro_f1']:.3f} "
                    f"({found['num_rows']} rows)"
                )
        if "calibration" in scores:
            self._view.line(f"calibrated by temperature {scores['calibration']['temperature']:.2f}")

    def close(self) -> None:
        """The run is over, however it ended."""
        self._view.close()
        for tracker in self._trackers:
            tracker.close()

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(event, fields)

    def _track(self, step: int, values: dict[str, float]) -> None:
        """A tracker that fails costs its figures, not the run."""
        for tracker in list(self._trackers):
            try:
                tracker.log(step, values)
            except Exception as error:
                self._trackers.remove(tracker)
                self.phase(f"{type(tracker).__name__} failed and is left out: {error}")


def describe(evaluation: Evaluation) -> str:
    """An evaluation in words."""
    words = f"validation loss {evaluation.loss:.4f}"
    if evaluation.accuracy is not None:
        words += f", accuracy {evaluation.accuracy:.3f}, macro F1 {evaluation.macro_f1:.3f}"
    return words


def memory_bytes() -> int:
    """What the run holds now: of the GPU where it uses one, else of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)
