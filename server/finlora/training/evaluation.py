"""Looks at the validation rows while a run goes on, on the model as it is being trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from finlora.evaluation.scores import score
from finlora.training.batches import Example, by_length, collate
from finlora.training.config import Metric
from finlora.training.forward import row_logprobs

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the validation rows said after a step. None: not looked at."""

    step: int
    loss: float  # mean negative log-likelihood of the target tokens
    accuracy: float | None = None
    macro_f1: float | None = None

    def value(self, metric: Metric) -> float:
        """Higher is better."""
        found: float | None = getattr(self, metric)
        if found is None:
            raise ValueError(f"{metric} was not measured")
        return -found if metric == "loss" else found


class ValidationRows:
    """A sample of the rows held out, tokenised once."""

    def __init__(
        self, examples: Sequence[Example], labels: Sequence[str], targets: Sequence[list[int]]
    ) -> None:
        """`targets`: token ids of the labels; none: the loss alone is measured."""
        self._examples = examples
        self._labels = labels
        self._targets = targets

    def evaluate(self, model: PreTrainedModel, step: int) -> Evaluation:
        """The caller has brought the layers into evaluation mode."""
        loss = -sum(self._logprobs(model, self._examples)) / sum(
            len(example.target) for example in self._examples
        )
        if not self._targets:
            return Evaluation(step, loss)
        scores = score(self._labels, self._expected(), self._chosen(model))
        return Evaluation(step, loss, scores.accuracy, scores.macro_f1)

    def _expected(self) -> list[str]:
        return [self._labels[self._targets.index(example.target)] for example in self._examples]

    def _chosen(self, model: PreTrainedModel) -> list[str]:
        choices = [Example(e.context, target) for e in self._examples for target in self._targets]
        logprobs = torch.tensor(self._logprobs(model, choices)).view(len(self._examples), -1)
        return [self._labels[i] for i in logprobs.argmax(1).tolist()]

    def _logprobs(self, model: PreTrainedModel, examples: Sequence[Example]) -> list[float]:
        logprobs = torch.empty(len(examples), dtype=torch.float64)
        for indices in by_length(examples, BATCH_SIZE):
            batch = collate([examples[i] for i in indices], model.device)
            logprobs[indices] = row_logprobs(model, batch).cpu().double()
        found: list[float] = logprobs.tolist()
        return found
