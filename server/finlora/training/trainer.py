"""The training loop: batches in, learned LoRA layers out. Knows no files and no registry."""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finlora.errors import FinLoRAError
from finlora.training.batches import Example, collate, in_chunks, length_grouped
from finlora.training.config import TrainingConfig
from finlora.training.forward import target_logprobs
from finlora.training.lora_layer import TrainableLoRA
from finlora.training.optimization import make_optimizer, rate_factor


class TrainingDivergedError(FinLoRAError):
    """The loss is no longer a number."""


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
        self, model: PreTrainedModel, layers: dict[str, TrainableLoRA], config: TrainingConfig
    ) -> None:
        self._model = model
        self._config = config
        self._parameters = [
            p for layer in layers.values() for p in layer.parameters() if p.requires_grad
        ]
        self._layers = layers
        self.history = TrainingHistory()
        self._optimizer = make_optimizer(self._parameters, config, model.device)

    def fit(
        self,
        epochs: Callable[[int], list[Example]],
        *,
        on_step: Callable[[Step], None],
    ) -> TrainingHistory:
        """Train to the end of `num_epochs`; `epochs` gives the examples of an epoch.

        Goes on after the steps in `history`. Raises TrainingDivergedError when the loss is not
        finite, before the weights are touched.
        """
        num_done = len(self.history.steps)
        number = 0
        self._set_training(True)
        per_step = self._config.batch_size * self._config.gradient_accumulation_steps
        num_steps = self._config.num_epochs * math.ceil(len(epochs(0)) / per_step)
        for epoch in range(self._config.num_epochs):
            for batches in self._steps_of(epochs(epoch), epoch):
                number += 1
                if number > num_done:
                    step = self._step(batches, number, num_steps, epoch)
                    self.history.steps.append(step)
                    on_step(step)
        self._set_training(False)
        return self.history

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state, to go on from."""
        state = self._optimizer.state_dict()["state"]
        return {
            **{f"weight.{i}": p.detach().clone() for i, p in enumerate(self._parameters)},
            **{
                f"{key}.{i}": torch.as_tensor(value).clone()
                for i, entries in state.items()
                for key, value in entries.items()
            },
        }

    @torch.no_grad()
    def restore(self, steps: list[Step], tensors: dict[str, Tensor]) -> None:
        """Go on after these steps, from what `tensors` gave then."""
        state: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(self._parameters))}
        for name, tensor in tensors.items():
            key, _, index = name.rpartition(".")
            state[int(index)][key] = tensor
        for parameter, entries in zip(self._parameters, state.values(), strict=True):
            parameter.copy_(entries.pop("weight"))
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.history.steps = list(steps)

    def _steps_of(self, examples: list[Example], epoch: int) -> Iterator[list[list[Example]]]:
        """Batches of each optimizer step."""
        generator = random.Random(f"{self._config.seed}/{epoch}")
        batches = length_grouped(examples, self._config.batch_size, generator)
        return in_chunks(batches, self._config.gradient_accumulation_steps)

    def _step(self, batches: list[list[Example]], number: int, num_steps: int, epoch: int) -> Step:
        started = time.perf_counter()
        if self._config.lora_dropout:
            # By step, so that a run that is taken up again draws what it would have drawn.
            torch.manual_seed(self._config.seed * 1_000_003 + number)
        num_targets = sum(len(example.target) for batch in batches for example in batch)
        loss = 0.0
        for examples in batches:
            loss += self._backward(examples, num_targets)
        if not math.isfinite(loss):
            raise TrainingDivergedError(f"the loss is {loss} in step {number}: nothing is saved")
        rate = self._config.learning_rate * rate_factor(self._config, number, num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Step(
            number=number,
            num_steps=num_steps,
            epoch=epoch,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm.item(),
            num_tokens=sum(example.num_tokens for batch in batches for example in batch),
            seconds=time.perf_counter() - started,
        )

    def _backward(self, examples: list[Example], num_targets: int) -> float:
        """Every target token of a step weighs the same, whatever micro-batch it is in."""
        logprobs = target_logprobs(self._model, collate(examples, self._model.device))
        loss: Tensor = -logprobs.sum() / num_targets
        loss.backward()
        return loss.item()

    def _set_training(self, mode: bool) -> None:
        # The base stays in eval mode: its own dropout is none of ours.
        for layer in self._layers.values():
            layer.training = mode
