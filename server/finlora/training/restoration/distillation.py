"""Teaches the student's layers to give the teacher's distribution at every position of a text."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finlora.training.config import TrainingConfig
from finlora.training.optimization import make_optimizer, rate_factor
from finlora.training.restoration.fidelity import divergence
from finlora.training.restoration.pair import Pair
from finlora.training.trainer import check_finite


@dataclass(frozen=True, slots=True)
class DistillationStep:
    """What one step did."""

    number: int  # from 1
    num_steps: int
    kl: float  # before the step
    tokens_per_second: float


def distil(
    pair: Pair,
    batches: Sequence[Tensor],
    config: TrainingConfig,
    on_step: Callable[[DistillationStep], None],
) -> None:
    """One step for each batch. Raises TrainingDivergedError, the weights as they were before."""
    parameters = list(pair.parameters())
    optimizer = make_optimizer(parameters, config, pair.student.device)
    for number, ids in enumerate(batches, start=1):
        started = time.perf_counter()
        kl = divergence(pair.student_logprobs(ids), pair.teacher_logprobs(ids))
        kl.backward()
        check_finite("divergence", kl.item(), number)
        rate = config.learning_rate * rate_factor(config, number, len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        check_finite("gradient's norm", norm.item(), number)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        speed = ids.numel() / (time.perf_counter() - started)
        on_step(DistillationStep(number, len(batches), kl.item(), speed))
