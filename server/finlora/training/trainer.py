"""The training loop: batches in, learned LoRA layers out. Knows no files and no registry."""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from finlora.errors import FinLoRAError
from finlora.training.batches import (
    Example,
    collate,
    in_chunks,
    in_random_order,
    length_grouped,
    micro_batches,
)
from finlora.training.config import Metric, TrainingConfig
from finlora.training.evaluation import Evaluation
from finlora.training.forward import target_logprobs
from finlora.training.lora_layer import TrainableLoRA
from finlora.training.optimization import (
    make_optimizer,
    optimizer_state,
    rate_factor,
    restore_optimizer,
)
from finlora.training.team import ALONE, Team


class TrainingDivergedError(FinLoRAError):
    """The loss, or its gradient, is no longer a number."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step did."""

    number: int  # from 1
    num_steps: int
    epoch: int
    loss: float  # mean over the target tokens
    learning_rate: float
    grad_norm: float
    num_tokens: int
    seconds: float


@dataclass(slots=True)
class TrainingHistory:
    """What a run did, step by step."""

    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def best(self, metric: Metric) -> Evaluation | None:
        """The first of the best evaluations."""
        return max(self.evaluations, key=lambda found: found.value(metric), default=None)

    def num_since_best(self, metric: Metric) -> int:
        """Evaluations after the best one."""
        best = self.best(metric)
        return 0 if best is None else len(self.evaluations) - 1 - self.evaluations.index(best)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, prompts and answers."""
        return sum(step.num_tokens for step in self.steps)

    @property
    def tokens_per_second(self) -> float:
        """Over the whole run, without evaluation."""
        return self.num_tokens / max(sum(step.seconds for step in self.steps), 1e-9)


class Trainer:
    """Trains the layers attached to a model on examples."""

    def __init__(
        self,
        model: PreTrainedModel,
        layers: dict[str, TrainableLoRA],
        config: TrainingConfig,
        *,
        checkpointing: bool = False,
        team: Team = ALONE,
    ) -> None:
        """With `checkpointing` activations are computed again in the backward pass."""
        self._model = model
        self._config = config
        self._team = team
        self._parameters = [
            p for layer in layers.values() for p in layer.parameters() if p.requires_grad
        ]
        self._layers = layers
        self._blocks = checkpointed_blocks(model) if checkpointing else []
        self._best: list[Tensor] = []
        self.history = TrainingHistory()
        self._optimizer = make_optimizer(self._parameters, config, model.device)

    def fit(
        self,
        epochs: Callable[[int], list[Example]],
        *,
        on_step: Callable[[Step], None],
        evaluate: Callable[[int], Evaluation] | None = None,
        on_evaluation: Callable[[Evaluation], None] = lambda _: None,
    ) -> TrainingHistory:
        """Train to the end of `num_epochs`, or until evaluations get no better.

        `epochs` gives the examples of an epoch, `evaluate` looks at the model after a step. Goes on
        after the steps in `history`; ends with the best weights that an evaluation saw. Raises
        TrainingDivergedError when the loss or its gradient is not finite, before the weights are
        touched.
        """
        self._team.agree_on(self._parameters)
        self._set_training(True)
        try:
            for step, batches in self._plan(epochs):
                if self._has_stalled():
                    break
                self.history.steps.append(self._step(batches, step))
                if evaluate is not None and self._is_evaluated(step):
                    on_evaluation(self._evaluate(evaluate, step.number))
                on_step(self.history.steps[-1])
        finally:
            self._set_training(False)
        self._restore_best()
        return self.history

    def tensors(self) -> dict[str, Tensor]:
        """Weights, the best ones so far, and optimizer state, to go on from."""
        return {
            **{f"weight.{i}": p.detach().clone() for i, p in enumerate(self._parameters)},
            **{f"best.{i}": tensor for i, tensor in enumerate(self._best)},
            **{
                f"{key}.{i}": tensor
                for i, entries in optimizer_state(self._optimizer).items()
                for key, tensor in entries.items()
            },
        }

    @torch.no_grad()
    def restore(self, history: TrainingHistory, tensors: dict[str, Tensor]) -> None:
        """Go on after this history, from what `tensors` gave then."""
        state: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(self._parameters))}
        for name, tensor in tensors.items():
            key, _, index = name.rpartition(".")
            state[int(index)][key] = tensor
        best = [entries.pop("best", None) for entries in state.values()]
        self._best = [tensor for tensor in best if tensor is not None]
        for parameter, entries in zip(self._parameters, state.values(), strict=True):
            parameter.copy_(entries.pop("weight"))
        restore_optimizer(self._optimizer, state)
        self.history = history

    def _plan(
        self, epochs: Callable[[int], list[Example]]
    ) -> Iterator[tuple["_Place", list[list[Example]]]]:
        """The batches of every optimizer step that is still to be done."""
        steps_per_epoch = math.ceil(len(epochs(0)) / (self._config.batch_size * self._per_step))
        num_steps = self._config.num_epochs * steps_per_epoch
        num_done, number = len(self.history.steps), 0
        for epoch in range(self._config.num_epochs):
            steps = in_chunks(batches_of_epoch(epochs(epoch), self._config, epoch), self._per_step)
            for i, batches in enumerate(steps, start=1):
                number += 1
                if number > num_done:
                    ends_epoch = i == steps_per_epoch
                    yield _Place(number, num_steps, epoch, ends_epoch), batches

    @property
    def _per_step(self) -> int:
        """Batches of an optimizer step, of all processes."""
        return self._config.gradient_accumulation_steps * self._team.size

    def _is_evaluated(self, step: "_Place") -> bool:
        every = self._config.eval_steps
        if every is None:
            return step.ends_epoch
        return bool(every) and (step.number % every == 0 or step.number == step.num_steps)

    def _evaluate(self, evaluate: Callable[[int], Evaluation], number: int) -> Evaluation:
        self._set_training(False)
        # One process looks, so that all decide alike.
        found = self._team.from_leader(evaluate(number) if self._team.leads else None)
        self._set_training(True)
        self.history.evaluations.append(found)
        if self.history.num_since_best(self._config.eval_metric) == 0:
            self._best = [p.detach().clone() for p in self._parameters]
        return found

    def _has_stalled(self) -> bool:
        patience = self._config.early_stopping
        return (
            patience is not None
            and self.history.num_since_best(self._config.eval_metric) >= patience
        )

    @torch.no_grad()
    def _restore_best(self) -> None:
        for parameter, best in zip(self._parameters, self._best, strict=False):
            parameter.copy_(best)

    def _step(self, batches: list[list[Example]], place: "_Place") -> Step:
        started = time.perf_counter()
        number, num_steps = place.number, place.num_steps
        if self._config.lora_dropout:
            # By step, so that a run that is taken up again draws what it would have drawn.
            torch.manual_seed(self._config.seed * 1_000_003 + number + self._team.rank * 2**40)
        examples = [example for batch in batches for example in batch]
        weight = sum(example.weight * len(example.target) for example in examples)
        loss = self._team.add(sum(self._backward(b, weight) for b in self._team.share(batches)))
        check_finite("loss", loss, number)
        rate = self._config.learning_rate * rate_factor(self._config, number, num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._team.add_gradients(self._parameters)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm).item()
        check_finite("gradient's norm", norm, number)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Step(
            number=number,
            num_steps=num_steps,
            epoch=place.epoch,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            num_tokens=sum(example.num_tokens for example in examples),
            seconds=time.perf_counter() - started,
        )

    def _backward(self, examples: list[Example], weight: float) -> float:
        """Every target token of a step weighs by its row, whatever micro-batch it is in."""
        total = 0.0
        for part in micro_batches(examples, self._model.device):
            batch = collate(part, self._model.device)
            loss: Tensor = -(target_logprobs(self._model, batch) * batch.weights).sum() / weight
            loss.backward()
            total += loss.item()
        return total

    def _set_training(self, mode: bool) -> None:
        # The base stays in eval mode: its own dropout is none of ours. Blocks look at their own
        # switch, not at that of their parts, to decide whether to compute again.
        for module in (*self._layers.values(), *self._blocks):
            module.training = mode


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the run a step is."""

    number: int  # from 1
    num_steps: int
    epoch: int
    ends_epoch: bool


def check_finite(what: str, value: float, number: int) -> None:
    """Raises TrainingDivergedError; call it before the step's weights are touched."""
    if not math.isfinite(value):
        raise TrainingDivergedError(
            f"the {what} is {value} in step {number}: stopped before it could spoil the weights"
        )


def batches_of_epoch(
    examples: list[Example], config: TrainingConfig, epoch: int
) -> list[list[Example]]:
    """Every example once, in the order that seed and epoch decide."""
    generator = random.Random(f"{config.seed}/{epoch}")
    order = length_grouped if config.group_by_length else in_random_order
    return order(examples, config.batch_size, generator)


def checkpointed_blocks(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """Let the model's blocks keep their inputs alone while they are in training mode."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    return [block for block in model.modules() if isinstance(block, GradientCheckpointingLayer)]
