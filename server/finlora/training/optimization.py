"""The optimizer of a device, and the learning rate of a step."""

import logging
import math

import torch

from finlora.training.config import TrainingConfig

logger = logging.getLogger(__name__)


def rate_factor(config: TrainingConfig, step: int, num_steps: int) -> float:
    """Share of the learning rate in step 1..num_steps: linear warm-up, then the schedule."""
    num_warmup = math.ceil(config.warmup * num_steps)
    if step <= num_warmup:
        return step / num_warmup
    if config.lr_scheduler == "constant":
        return 1.0
    done = (step - num_warmup - 1) / max(num_steps - num_warmup, 1)
    return 1 - done if config.lr_scheduler == "linear" else (1 + math.cos(math.pi * done)) / 2


def make_optimizer(
    parameters: list[torch.nn.Parameter], config: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW; on CUDA with 8-bit state in paged memory, which on a CPU would gain nothing."""
    if device.type == "cuda":
        from bitsandbytes.optim.adamw import PagedAdamW8bit

        optimizer: torch.optim.Optimizer = PagedAdamW8bit(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return optimizer
    logger.info("plain AdamW: paged 8-bit optimizer state is for CUDA")
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
